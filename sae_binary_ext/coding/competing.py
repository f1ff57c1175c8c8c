"""topk whose latents compete for its places (surrogate_latents "all" and "near").

The k latents that fire are those whose margin exceeds the token's cutoff, and a soft count of the
latents around the cutoff stands for k: with p_j = sigmoid((margin_j - cutoff) / T), or another
surrogate's, and their sum held fixed, the cutoff moves with the margins by
d cutoff = sum_j p'_j d margin_j / sum_j p'_j. So a latent's gradient is

    d L / d margin_j = p'_j (g_j - sum_i p'_i g_i / sum_i p'_i),   g_j = d L / d code_j:

what gains by firing comes up and pushes out what gains less. A token with fewer than k positive
margins has room left: its cutoff stays at 0 and p'_j g_j remains, as with selection threshold.

With "all", j runs over all latents; with "near", over those of the 4k largest margins, and no
other learns from the token.
"""

from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule, pick_latents, scatter_codes
from sae_binary_ext.coding.surrogate import SURROGATES


def find_cutoff(picked: Tensor, latents: int) -> Tensor:
    """The least margin that fires, or 0 where k leaves room.

    Args:
        picked: [..., k], the margins of the picked latents.
        latents: how many compete; as many as are picked leave none to compete with.

    Returns:
        [..., 1], at least 0.
    """
    if picked.shape[-1] == latents:
        return torch.zeros_like(picked[..., :1])
    return picked.amin(-1, keepdim=True).clamp_min(0)


def learn_through(
    gradient: Tensor, margin: Tensor, rule: CodeRule, cutoff: Tensor | None
) -> Tensor:
    """Gradient of the margins, of the gradient of the codes.

    Args:
        gradient: [..., latents], of the codes.
        margin: [..., latents].
        rule: its surrogate.
        cutoff: [..., 1], see find_cutoff; None where each latent learns for itself.
    """
    slope = SURROGATES[rule.surrogate]
    if cutoff is None:
        return gradient * slope(margin, rule.surrogate_temperature)
    weight = slope(margin - cutoff, rule.surrogate_temperature)
    learns = gradient * weight
    # Where k binds, the latent at the cutoff has a slope with every surrogate.
    shared = learns.sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return learns.addcmul_(weight, torch.where(cutoff > 0, shared, 0), value=-1)


def competing_codes(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes [..., latents] of margins [..., latents]: those of topk, with the gradient above."""
    if rule.every_latent_learns:
        return compete(margin, rule)
    values, index = pick_latents(margin, rule.learning(margin.shape[-1]))
    return scatter_codes(compete(values, rule), index, margin.shape[-1])


def compete(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes of the latents that compete, and of no others.

    Args:
        margin: [..., m], of the m >= k that do.
        rule: k and the surrogate.

    Returns:
        [..., m], 1.0 for the k largest where they are positive.
    """
    return _Competing.apply(margin, rule)  # pyright: ignore[reportReturnType]


class _Competing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor, rule: CodeRule) -> Tensor:
        picked, index = pick_latents(margin, rule)
        ctx.save_for_backward(margin, find_cutoff(picked, margin.shape[-1]))
        ctx.rule = rule
        return scatter_codes((picked > 0).to(margin.dtype), index, margin.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        margin, cutoff = ctx.saved_tensors
        return learn_through(grad_outputs[0], margin, ctx.rule, cutoff), None
