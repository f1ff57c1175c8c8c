"""Codes of many tokens for storing and looking up, without an array of tokens x latents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms.margins import margins_in_parts, ones_first
from sae_binary_ext.coding.forms.screening import pick
from sae_binary_ext.coding.packing import pack, pack_indices, packed_width
from sae_binary_ext.coding.selection import select_codes


@torch.no_grad()
def infer_indices(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form.

    Args:
        encoder: of tokens [..., d_in].

    Returns:
        Codes, 0.0 or 1.0, and the latents they belong to, int64, both [..., m]; see
        encode.active_latents.
    """
    rule = encoder.rule
    if rule.kind.pick is not None:
        values, index = pick(encoder)
        codes = values > 0
    else:
        codes, index = ones_first(torch.cat(list(_active_in_parts(encoder))))
    shape = (*encoder.centred.shape[:-1], codes.shape[-1])
    return codes.to(encoder.weight.dtype).view(shape), index.view(shape)


@torch.no_grad()
def infer_packed(encoder: Encoder) -> Tensor:
    """Noise-free codes, a bit each.

    Args:
        encoder: of tokens [..., d_in].

    Returns:
        uint8 [..., packed_width(latents)]; see codes.pack.
    """
    if encoder.rule.kind.pick is not None:
        values, index = pick(encoder)
        packed = pack_indices(values > 0, index, encoder.latents)
    else:
        packed = torch.cat([pack(active) for active in _active_in_parts(encoder)])
    # Of no tokens at all a width cannot be inferred.
    return packed.view(*encoder.centred.shape[:-1], packed_width(encoder.latents))


def _active_in_parts(encoder: Encoder) -> Iterator[Tensor]:
    """Codes, bool [a few tokens, latents]."""
    for margin in margins_in_parts(encoder):
        if encoder.rule.kind.alone:
            yield margin > 0
        else:
            yield select_codes(margin, encoder.rule, noise=False) != 0
