"""Codes in index form: a few latents of each token, and the codes of these latents."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import compete_near
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.margins import margins_in_parts, ones_first, pick_above
from sae_binary_ext.coding.forms.screening import pick
from sae_binary_ext.coding.kernels.processor import index_form_pays
from sae_binary_ext.coding.kernels.sparse import Picks
from sae_binary_ext.coding.packing import pack, pack_indices, packed_width
from sae_binary_ext.coding.selection import CodeRule, select_codes
from sae_binary_ext.coding.surrogate import step


def picks_indices(rule: CodeRule, latents: int, device: torch.device) -> bool:
    """Whether a rule has an index form that is faster than the dense form on a device."""
    picks = rule.kind.pick is not None and not rule.every_latent_learns
    return picks and index_form_pays(latents, rule.learners(latents), device)


def encode_indices(encoder: Encoder) -> tuple[Tensor, Picks, Tensor, Tensor]:
    """Codes in index form, of a selection that picks k latents.

    Returns:
        Codes [tokens, m], 0.0 or 1.0, of the m latents of each token that learn; the Picks of these
        latents; their margins [tokens, m], without gradient; all pre-activations [tokens, latents].
    """
    pre = encoder.pre_activations()
    with torch.no_grad():
        more = encoder.rule.next_learners(encoder.latents)
        values, index = pick_above(pre, encoder.threshold, encoder.rule, more)
    picks = Picks(index, encoder.latents, fire=encoder.rule.k)
    return _codes_of_picks(values, encoder, picks).to(pre.dtype), picks, values, pre


def encode_picks(encoder: Encoder) -> tuple[Tensor, Picks, Tensor]:
    """As encode_indices, but it does not return or keep the pre-activations."""
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
    """The picked margins, whose gradient goes to the encoder without an array of all margins."""

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


@torch.no_grad()
def infer_indices(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Noise-free codes of tokens [..., d_in], 0.0 or 1.0, and their latents, int64.

    Both results are [..., m] (see margins.active_latents). No array of tokens x latents is made.
    """
    if encoder.rule.kind.pick is not None:
        values, index = pick(encoder)
        codes = values > 0
    else:
        codes, index = ones_first(torch.cat(list(_active_in_parts(encoder))))
    shape = (*encoder.centred.shape[:-1], codes.shape[-1])
    return codes.to(encoder.weight.dtype).view(shape), index.view(shape)


@torch.no_grad()
def infer_packed(encoder: Encoder) -> Tensor:
    """Noise-free codes of tokens [..., d_in], uint8 [..., packed_width(latents)]; see packing.pack.

    No array of tokens x latents is made.
    """
    if encoder.rule.kind.pick is not None:
        values, index = pick(encoder)
        packed = pack_indices(values > 0, index, encoder.latents)
    else:
        packed = torch.cat([pack(active) for active in _active_in_parts(encoder)])
    # Give view the width: torch cannot infer it if there are no tokens.
    return packed.view(*encoder.centred.shape[:-1], packed_width(encoder.latents))


def _active_in_parts(encoder: Encoder) -> Iterator[Tensor]:
    """Codes of a few tokens at a time, bool [tokens, latents]."""
    for margin in margins_in_parts(encoder):
        if encoder.rule.kind.alone:
            yield margin > 0
        else:
            yield select_codes(margin, encoder.rule, noise=False) != 0
