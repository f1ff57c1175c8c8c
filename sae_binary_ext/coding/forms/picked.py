"""The encoder in index form: the codes of the latents that learn from a token, if these are few."""

from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import compete_near
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.margins import pick_above
from sae_binary_ext.coding.forms.screening import pick
from sae_binary_ext.coding.kernels.sparse import Picks
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import step


def picks_indices(rule: CodeRule, latents: int) -> bool:
    """Whether a rule has an index form, and it is faster than the dense form.

    On two CPU cores forward and backward take 0.74 to 0.84 of the dense form's time if k is an
    eighth of the latents, and 1.1 to 1.2 if it is a quarter (benchmarks/paths.py).
    """
    picks = rule.kind.pick is not None and not rule.every_latent_learns
    return picks and rule.learners(latents) * 8 <= latents


def encode_indices(encoder: Encoder) -> tuple[Tensor, Picks, Tensor, Tensor]:
    """The codes in index form; only the latents that learn get a gradient.

    Args:
        encoder: its selection picks k latents (topk, groupmax).

    Returns:
        Codes [tokens, m], 0.0 or 1.0, of the m latents of each token that learn; which these are;
        their margins [tokens, m], without gradient; and all pre-activations [tokens, latents],
        with gradient.
    """
    pre = encoder.pre_activations()
    with torch.no_grad():
        more = encoder.rule.next_learners(encoder.latents)
        values, index = pick_above(pre, encoder.threshold, encoder.rule, more)
    picks = Picks(index, encoder.latents, fire=encoder.rule.k)
    return _codes_of_picks(values, encoder, picks).to(pre.dtype), picks, values, pre


def encode_picks(encoder: Encoder) -> tuple[Tensor, Picks, Tensor]:
    """What encode_indices returns, without the pre-activations.

    It makes the pre-activations of a block of tokens at a time and does not keep them.
    """
    values, index = pick(encoder, encoder.rule.next_learners(encoder.latents))
    picks = Picks(index, encoder.latents, fire=encoder.rule.k)
    return _codes_of_picks(values, encoder, picks).to(encoder.weight.dtype), picks, values


def _codes_of_picks(values: Tensor, encoder: Encoder, picks: Picks) -> Tensor:
    """Codes [tokens, m] of picked margins [tokens, m], with gradient."""
    margin = cast(Tensor, _PickedGradient.apply(*encoder.learned(), values, picks))
    rule = encoder.rule
    if rule.competes:
        return compete_near(margin, rule)
    return step(margin, rule.surrogate, rule.surrogate_temperature)


class _PickedGradient(torch.autograd.Function):
    """Returns the picked margins; backward gives the encoder the gradient of the picks alone."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        centred, weight, _, _, _, values, ctx.picks = inputs
        ctx.save_for_backward(centred, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        picks: Picks = ctx.picks
        grad = grad_outputs[0].to(weight.dtype)
        grad_bias = weight.new_zeros(picks.width)
        grad_bias.index_add_(0, picks.index.flatten(), grad.flatten())
        needs_centred, *_, needs_origin, _, _ = ctx.needs_input_grad
        return (
            picks.times(grad, weight.T.contiguous()) if needs_centred else None,
            picks.transposed_times(grad, centred).T,
            grad_bias,
            -grad_bias,
            -(weight @ grad_bias) if needs_origin else None,
            None,
            None,
        )
