"""Codes of many tokens for storing and looking up, without an array of tokens x latents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_binary_ext.coding.codes import pack, pack_indices
from sae_binary_ext.coding.encode import Encoder, pick_above, pre_activations_in_parts
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule, ones_first, select_codes


@torch.no_grad()
def infer_indices(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form.

    Args:
        encoder: of tokens [..., d_in].

    Returns:
        Codes, 0.0 or 1.0, and the latents they belong to, int64, both [..., m]; see
        encode.active_latents.
    """
    rule, threshold = encoder.rule, encoder.threshold
    if SELECTIONS[rule.selection].pick is not None:
        found = [pick_above(pre, threshold, rule) for pre in _parts(encoder)]
        codes, index = (torch.cat(each) for each in zip(*found, strict=True))
        codes = codes > 0
    else:
        active = [_active(pre, threshold, rule) for pre in _parts(encoder)]
        codes, index = ones_first(torch.cat(active))
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
    rule, threshold = encoder.rule, encoder.threshold
    picks = SELECTIONS[rule.selection].pick is not None

    def packed(pre: Tensor) -> Tensor:
        if picks:
            margin, index = pick_above(pre, threshold, rule)
            return pack_indices(margin > 0, index, encoder.latents)
        return pack(_active(pre, threshold, rule))

    codes = torch.cat([packed(pre) for pre in _parts(encoder)])
    return codes.view(*encoder.centred.shape[:-1], -1)


def _parts(encoder: Encoder) -> Iterator[Tensor]:
    """Pre-activations of a few tokens at a time."""
    rows = encoder.centred.reshape(-1, encoder.centred.shape[-1])
    return pre_activations_in_parts(rows, encoder.weight, encoder.bias)


def _active(pre: Tensor, threshold: Tensor, rule: CodeRule) -> Tensor:
    """Codes, bool [tokens, latents]."""
    if SELECTIONS[rule.selection].alone:
        return pre > threshold
    return select_codes(pre - threshold, rule, noise=False) != 0
