"""Codes of many tokens for storing and looking up, without an array of tokens x latents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_binary_ext.coding.codes import pack, pack_indices
from sae_binary_ext.coding.encode import pick_above
from sae_binary_ext.coding.parts import cached_parts
from sae_binary_ext.coding.selection import SELECTIONS, CodeRule, ones_first, select_codes

# Tokens and entries of a matrix product at most. On two cores (576 dimensions, 4608 and 36,864
# latents) products of 64 tokens take twice as long a token and of 256 a third longer; of more than
# 1024 they take no less, and fresh memory for 150 MB of them takes a fifth of their time.
ROWS, ENTRIES = 1024, 2**24


@torch.no_grad()
def infer_indices(
    centred: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    log_threshold: Tensor,
    rule: CodeRule,
) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form.

    Args:
        centred: [..., d_in], the coder's input minus what it subtracts.
        encoder_weight: [d_in, latents].
        encoder_bias: [latents].
        log_threshold: [latents].
        rule: selection and surrogate.

    Returns:
        Codes, 0.0 or 1.0, and the latents they belong to, int64, both [..., m]; see
        selection.active_latents.
    """
    threshold = log_threshold.exp()
    parts = _pre_activations_in_parts(centred, encoder_weight, encoder_bias)
    if SELECTIONS[rule.selection].pick is not None:
        found = [pick_above(pre, threshold, rule) for pre in parts]
        codes, index = (torch.cat(each) for each in zip(*found, strict=True))
        codes = codes > 0
    else:
        codes, index = ones_first(torch.cat([_active(pre, threshold, rule) for pre in parts]))
    shape = (*centred.shape[:-1], codes.shape[-1])
    return codes.to(encoder_weight.dtype).view(shape), index.view(shape)


@torch.no_grad()
def infer_packed(
    centred: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    log_threshold: Tensor,
    rule: CodeRule,
) -> Tensor:
    """Noise-free codes, a bit each; arguments as infer_indices takes them.

    Returns:
        uint8 [..., packed_width(latents)]; see codes.pack.
    """
    threshold = log_threshold.exp()
    latents = encoder_weight.shape[1]

    picks = SELECTIONS[rule.selection].pick is not None

    def packed(pre: Tensor) -> Tensor:
        if picks:
            margin, index = pick_above(pre, threshold, rule)
            return pack_indices(margin > 0, index, latents)
        return pack(_active(pre, threshold, rule))

    parts = _pre_activations_in_parts(centred, encoder_weight, encoder_bias)
    return torch.cat([packed(pre) for pre in parts]).view(*centred.shape[:-1], -1)


def _active(pre: Tensor, threshold: Tensor, rule: CodeRule) -> Tensor:
    """Codes, bool [tokens, latents]."""
    if SELECTIONS[rule.selection].alone:
        return pre > threshold
    return select_codes(pre - threshold, rule, noise=False) != 0


def _pre_activations_in_parts(
    centred: Tensor, encoder_weight: Tensor, encoder_bias: Tensor
) -> Iterator[Tensor]:
    """Pre-activations [rows, latents] of a few rows at a time, overwritten by the next ones."""
    rows = centred.reshape(-1, centred.shape[-1])
    latents = encoder_weight.shape[1]
    size = min(ROWS, max(1, ENTRIES // latents))
    room = rows.new_empty(min(size, len(rows)), latents)
    for block in rows.split(size):
        product = torch.mm(block, encoder_weight, out=room[: len(block)])
        for part in cached_parts(product):
            yield part.add_(encoder_bias)
