"""Codes of the latents that learn from a token, where these are few: the encoder in index form."""

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
    """Whether encode_indices takes this rule, of which few latents of a token learn, and is
    expected to be the faster form.

    On two CPU cores forward and backward take 0.74 to 0.84 of the dense form's time where k is an
    eighth of the latents, and 1.1 to 1.2 where it is a quarter (benchmarks/paths.py).
    """
    picks = rule.kind.pick is not None and not rule.every_latent_learns
    return picks and rule.learners(latents) * 8 <= latents


def encode_indices(encoder: Encoder) -> tuple[Tensor, Picks, Tensor, Tensor]:
    """The encoder in index form: the same codes, with gradients of those latents alone that learn.

    Args:
        encoder: its selection picks a fixed number of latents (topk, groupmax).

    Returns:
        Codes [tokens, m], 0.0 or 1.0, of the m latents of each token that learn; which these are;
        their margins [tokens, m], without gradient; and all pre-activations [tokens, latents],
        through which gradients flow too.
    """
    pre = encoder.pre_activations()
    with torch.no_grad():
        more = encoder.rule.next_learners(encoder.latents)
        values, index = pick_above(pre, encoder.threshold, encoder.rule, more)
    picks = Picks(index, encoder.latents, fire=encoder.rule.k)
    return _codes_of_picks(values, encoder, picks).to(pre.dtype), picks, values, pre


def encode_picks(encoder: Encoder) -> tuple[Tensor, Picks, Tensor]:
    """What encode_indices returns, without the pre-activations: these are made and forgotten a
    block of tokens at a time.

    Args:
        encoder: its selection picks a fixed number of latents.

    Returns:
        Codes [tokens, m], 0.0 or 1.0, of the m latents of each token that learn; which these are;
        and their margins [tokens, m], without gradient.
    """
    values, index = pick(encoder, encoder.rule.next_learners(encoder.latents))
    picks = Picks(index, encoder.latents, fire=encoder.rule.k)
    return _codes_of_picks(values, encoder, picks).to(encoder.weight.dtype), picks, values


def _codes_of_picks(values: Tensor, encoder: Encoder, picks: Picks) -> Tensor:
    """Codes [tokens, m] of picked margins [tokens, m], with gradient."""
    margin = cast(
        Tensor,
        _PickedGradient.apply(
            values,
            encoder.centred,
            encoder.weight,
            encoder.bias,
            encoder.threshold,
            encoder.origin,
            picks,
        ),
    )
    rule = encoder.rule
    if rule.competes:
        return compete_near(margin, rule)
    return step(margin, rule.surrogate, rule.surrogate_temperature)


class _PickedGradient(torch.autograd.Function):
    """Passes picked margins on and gives the encoder its gradient, of the picks alone."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        centred: Tensor,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        origin: Tensor,
        picks: Picks,
    ) -> Tensor:
        ctx.save_for_backward(centred, weight)
        ctx.picks = picks
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        picks: Picks = ctx.picks
        grad = grad_outputs[0].to(weight.dtype)
        grad_bias = weight.new_zeros(picks.width)
        grad_bias.index_add_(0, picks.index.flatten(), grad.flatten())
        return (
            None,
            picks.times(grad, weight.T.contiguous()) if ctx.needs_input_grad[1] else None,
            picks.transposed_times(grad, centred).T,
            grad_bias,
            -grad_bias,
            -(weight @ grad_bias) if ctx.needs_input_grad[5] else None,
            None,
        )
