"""Triton kernels that make codes: the k largest margins of each row, and packed bits."""

# pyright: basic, reportArgumentType=false, reportCallIssue=false
# Triton's language is untyped.

import torch
import triton
import triton.language as tl
from torch import Tensor

# Number of bytes of packed codes that one program writes.
BYTES = 128


@triton.jit
def _pick_largest(pre, threshold, values, index, latents, k, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    latent = tl.arange(0, BLOCK)
    inside = latent < latents
    margin = tl.load(pre + token * latents + latent, mask=inside, other=0.0).to(tl.float32)
    margin -= tl.load(threshold + latent, mask=inside, other=0.0)
    # This key maps floats to whole numbers in the same order. Padding gets the smallest key, 0.
    bits = margin.to(tl.uint32, bitcast=True)
    negative = bits >> 31
    key = tl.where(negative == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(inside, key, 0)
    # This loop finds the k-th largest key bit by bit, from the highest bit down.
    kth = tl.zeros((), tl.uint32)
    for place in range(32):
        candidate = kth | (tl.full((), 1, tl.uint32) << (31 - place))
        enough = tl.sum((key >= candidate).to(tl.int32), 0) >= k
        kth = tl.where(enough, candidate, kth)
    above = key > kth
    tied = (key == kth) & inside
    wanted = k - tl.sum(above.to(tl.int32), 0)
    picked = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= wanted))
    place = tl.cumsum(picked.to(tl.int32), 0) - 1
    tl.store(values + token * k + place, margin, mask=picked)
    tl.store(index + token * k + place, latent.to(tl.int64), mask=picked)


@triton.jit
def _pack(active, out, latents, width, BYTES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    latent = byte[:, None] * 8 + bit[None, :]
    ones = tl.load(active + token * latents + latent, mask=latent < latents, other=0).to(tl.int32)
    packed = tl.sum(ones << bit[None, :], 1)
    tl.store(out + token * width + byte, packed.to(tl.uint8), mask=byte < width)


def pick_largest(pre_activation: Tensor, threshold: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Kernel of encode.pick_above for selection topk: margins and picks in one pass over memory.

    Args:
        pre_activation: [tokens, latents].
        threshold: float32 [latents].
        k: latents a token.

    Returns:
        Margins, float32 [tokens, k], and latents, int64 [tokens, k], ascending in each row. If
        margins are equal, the lower latents are picked.
    """
    tokens, latents = pre_activation.shape
    values = pre_activation.new_empty(tokens, k, dtype=torch.float32)
    index = pre_activation.new_empty(tokens, k, dtype=torch.int64)
    block = triton.next_power_of_2(latents)
    _pick_largest[(tokens,)](
        pre_activation.contiguous(),
        threshold,
        values,
        index,
        latents,
        k,
        BLOCK=block,
        num_warps=min(32, max(4, block // 1024)),
    )
    return values, index


def pack_bits(active: Tensor) -> Tensor:
    """Kernel of codes.pack for two dimensions.

    Args:
        active: bool [tokens, latents].

    Returns:
        uint8 [tokens, latents / 8 rounded up].
    """
    tokens, latents = active.shape
    width = triton.cdiv(latents, 8)
    out = torch.empty(tokens, width, dtype=torch.uint8, device=active.device)
    grid = (tokens, triton.cdiv(width, BYTES))
    _pack[grid](active.contiguous().view(torch.uint8), out, latents, width, BYTES)
    return out
