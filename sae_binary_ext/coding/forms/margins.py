"""Margins of many tokens, a block at a time, and codes in index form."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.kernels.processor import cached_parts, product_dtype
from sae_binary_ext.coding.selection import CodeRule, pick_and_next, select_codes
from sae_binary_ext.coding.surrogate import step

# Maximum of tokens and of entries in a block of pre-activations. On two cores (576 dimensions, 4608
# and 36,864 latents) the time per token of products of 64 tokens is twice that of products of 1024,
# and of 256 tokens 4/3 of it. Larger products are no faster, and need time to get memory.
ROWS, ENTRIES = 1024, 2**24


def pick_above(
    pre_activation: Tensor, threshold: Tensor, rule: CodeRule, more: int = 0
) -> tuple[Tensor, Tensor]:
    """As selection.pick_and_next, but from pre-activations; no array of all margins is made."""
    parts = cached_parts(pre_activation)
    picked = [pick_and_next(part - threshold, rule, more) for part in parts]
    if len(picked) == 1:
        return picked[0]
    values, index = zip(*picked, strict=True)
    return torch.cat(values), torch.cat(index)


def active_latents(
    pre_activation: Tensor, threshold: Tensor, rule: CodeRule
) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form, for any selection; margins are pre_activation - threshold.

    Codes, 0.0 or 1.0 in the pre-activations' dtype, and their latents are both [tokens, m]. m is k
    if the selection picks k latents. Otherwise m is the largest number of latents that fire on a
    token, at least 1. No latent appears twice in a row.
    """
    if rule.kind.pick is not None:
        values, index = pick_above(pre_activation, threshold, rule)
        codes = step(values, rule.surrogate, rule.surrogate_temperature)
    else:
        dense = select_codes(pre_activation - threshold, rule, noise=False)
        _, index = ones_first(dense != 0)
        codes = dense.gather(-1, index)
    return codes.to(pre_activation.dtype), index


def block_rows(latents: int) -> int:
    """Number of tokens whose pre-activations are made at once, if they are not kept."""
    return min(ROWS, max(1, ENTRIES // latents))


def margins_in_parts(encoder: Encoder) -> Iterator[Tensor]:
    """Margins [a few tokens, latents] of all tokens, part by part, without gradient.

    Use each part before asking for the next, which may overwrite it. Callers may overwrite parts.
    """
    rows = encoder.centred.reshape(-1, encoder.centred.shape[-1])
    bias, threshold = encoder.bias, encoder.threshold
    size = block_rows(encoder.latents)
    dtype = product_dtype(rows)
    weight = encoder.weight.to(dtype)
    room = weight.new_empty(min(size, len(rows)), encoder.latents)
    for block in rows.split(size):
        product = torch.mm(block.to(dtype), weight, out=room[: len(block)])
        for part in cached_parts(product):
            # Add in place, as new memory doubles the time, unless bfloat16 would round the sum.
            pre = part.add_(bias) if part.dtype == bias.dtype else part + bias
            yield pre.sub_(threshold) if pre.dtype == threshold.dtype else pre - threshold


def ones_first(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The index form of bool codes [..., latents]: uint8 codes and their latents, both [..., m].

    m is the largest number of ones in a row, at least 1. No latent appears twice in a row.
    """
    most = int(codes.sum(-1).max().item()) if codes.numel() else 1
    ones, index = codes.to(torch.uint8).topk(max(most, 1), dim=-1)
    return ones, index
