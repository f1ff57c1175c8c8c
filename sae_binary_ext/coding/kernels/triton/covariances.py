"""Triton kernels of the covariance penalty, with exact counts and signs in whole numbers."""

# pyright: basic, reportArgumentType=false, reportCallIssue=false
# Triton's language is untyped.

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64


@triton.jit
def _signs(codes, counts, signs, totals, tokens, latents, first, width, scale, TILE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    joint = tl.zeros((TILE, TILE), tl.int32)
    for start in range(0, tokens, TILE):
        token = (start + tl.arange(0, TILE)).to(tl.int64)
        there = token < tokens
        left = tl.load(
            codes + token[None, :] * latents + row[:, None],
            mask=there[None, :] & (row < latents)[:, None],
            other=0,
        )
        right = tl.load(
            codes + token[:, None] * latents + first + column[None, :],
            mask=there[:, None] & (column < width)[None, :],
            other=0,
        )
        joint += tl.dot(left, right, out_dtype=tl.int32)
    inside = (row < latents)[:, None] & (column < width)[None, :]
    rows = tl.load(counts + row, mask=row < latents, other=0)
    columns = tl.load(counts + first + column, mask=column < width, other=0)
    scaled = joint.to(tl.int64) * scale - rows[:, None] * columns[None, :]
    scaled = tl.where(inside & (row[:, None] != (first + column)[None, :]), scaled, 0)
    sign = (scaled > 0).to(tl.int8) - (scaled < 0).to(tl.int8)
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(signs + place, sign, mask=inside)
    total = tl.sum(tl.sum(tl.abs(scaled), 1), 0)
    tl.store(totals + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit
def _signed_sums(codes, signs, out, tokens, latents, width, TILE: tl.constexpr):
    token = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.int32)
    for start in range(0, latents, TILE):
        latent = (start + tl.arange(0, TILE)).to(tl.int64)
        left = tl.load(
            codes + token[:, None] * latents + latent[None, :],
            mask=(token < tokens)[:, None] & (latent < latents)[None, :],
            other=0,
        )
        right = tl.load(
            signs + latent[:, None] * width + column[None, :],
            mask=(latent < latents)[:, None] & (column < width)[None, :],
            other=0,
        )
        total += tl.dot(left, right, out_dtype=tl.int32)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    tl.store(out + token[:, None] * width + column[None, :], total, mask=inside)


def covariance_signs(codes: Tensor, counts: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Signs of a block's covariances with all latents, and the sum of their absolute values.

    Args:
        codes: int8 [tokens, latents], 0/1.
        counts: int64 [latents], sums of codes over tokens.
        block: the block's columns.

    Returns:
        int8 [latents, width of the block], 0 on the diagonal; and an int64 scalar, tokens^2 times
        the sum of the absolute biased covariances off the diagonal. Both are exact.
    """
    (tokens, latents), first = codes.shape, block.start
    width = min(block.stop, latents) - first
    signs = torch.empty(latents, width, dtype=torch.int8, device=codes.device)
    grid = (triton.cdiv(latents, TILE), triton.cdiv(width, TILE))
    totals = torch.empty(grid, dtype=torch.int64, device=codes.device)
    _signs[grid](codes, counts, signs, totals, tokens, latents, first, width, tokens, TILE)
    return signs, totals.sum()


def signed_sums(codes: Tensor, signs: Tensor) -> Tensor:
    """The product codes @ signs, exact.

    Args:
        codes: int8 [tokens, latents], 0/1.
        signs: int8 [latents, width], -1, 0 or 1.

    Returns:
        int32 [tokens, width].
    """
    (tokens, latents), width = codes.shape, signs.shape[1]
    out = torch.empty(tokens, width, dtype=torch.int32, device=codes.device)
    grid = (triton.cdiv(tokens, TILE), triton.cdiv(width, TILE))
    _signed_sums[grid](codes, signs, out, tokens, latents, width, TILE)
    return out
