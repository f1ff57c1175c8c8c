"""gumbel: one latent of each of k contiguous groups fires, so L0 is k.

In a training step the latent is a sample of the group's softmax at temperature 1. Otherwise it is
the group's largest. The gradient is that of the softmax at the rule's temperature, with the noise
held fixed. Quirke et al. (arXiv 2509.25596).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_binary_ext.coding.selections import Selection

if TYPE_CHECKING:
    from sae_binary_ext.coding.selection import CodeRule


def one_of_each_group(margin: Tensor, rule: "CodeRule", noise: bool) -> Tensor:
    """Codes of margins, both [..., latents]; sampled if noise is True."""
    groups = margin.unflatten(-1, (rule.k, -1))
    if noise:
        # -log of an exponential sample is a Gumbel sample.
        groups = groups - torch.empty_like(groups).exponential_().log()
    return _OneHot.apply(groups, rule.surrogate_temperature).flatten(-2)  # pyright: ignore


class _OneHot(torch.autograd.Function):
    """Exact one-hot of the largest entry; backward through softmax(logits / T).

    torch's own gumbel_softmax(hard=True) returns hard - soft + soft, which rounds to values that
    are not exactly 0 or 1.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        probability = torch.softmax(logits / ctx.temperature, dim=-1)
        centred = grad_outputs[0] - (probability * grad_outputs[0]).sum(-1, keepdim=True)
        return probability * centred / ctx.temperature, None


GUMBEL = Selection(
    "gumbel",
    activation="gumbel_binary",
    make_codes=one_of_each_group,
    groups=True,
    samples=True,
    # The softmax's gradient is the sigmoid surrogate's for more than two outcomes.
    surrogates=("sigmoid",),
    has_thresholds=False,
    paper_temperature=0.5,
)
