"""Which way of computing serves a batch. Every choice by device or by density is made here.

A GPU always gets torch's dense operation: it multiplies dense matrices fast, starting a kernel
costs it more than memory does, and asking it how dense codes are makes it wait. On the CPU the
choice depends on sizes, on the share of ones and on the processor's instructions. The timings
named below are of two cores; benchmarks/ has the scripts.
"""

from functools import cache

import torch
from torch import Tensor

# Sum rows of codes up to this share of ones. At a tenth, sums take half of the products' time or
# less (4096 tokens; 576 dimensions, or covariances).
SPARSE_DENSITY = 0.15
# Count pairs of latents one by one up to this share of ones. The time is a sixth of that of sums of
# rows at 31 active latents of 4608, and 1.5 of it at 130.
PAIRED_DENSITY = 0.015
# Multiply bytes from this share of ones on. The time is 0.9 of that of sums of rows at a tenth, and
# 1.2 to 1.45 at a twentieth (covariances, 4096 tokens).
BYTE_DENSITY = 0.1
# Read the rows of a matrix of up to so many entries (16 MB in float32) in the order of the tokens.
# Larger ones are read in their own order: 21 MB take 0.6 of the time, but 11 MB take 1.1.
CACHED = 2**22
# Size of a cache block, 1 MB in float32. Block only if each output row receives at least 40
# entries: with 50 the time is 0.72 to 0.83 of that without blocks, with 25 it is 1 to 3 (128 to
# 1024 dimensions).
BLOCK, BLOCK_ENTRIES = 2**18, 40
# Screen margins in bfloat16 only with at least so many tokens and dimensions: rounding the weights
# takes time too.
FEWEST_TOKENS, FEWEST_DIMENSIONS = 1024, 256


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16.

    Without them torch multiplies bfloat16 slower than float32.
    """
    return _has("avx512_bf16") or _has("amx_bf16")


def multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of whole numbers of a byte."""
    return _has("avx512_vnni") or _has("amx_int8")


@cache
def _has(capability: str) -> bool:
    # Older versions of torch cannot say.
    return getattr(torch.cpu, "get_capabilities", dict[str, bool])().get(capability, False)


def works_in_parts(rows: Tensor) -> bool:
    """Whether to take a few rows at a time, so that they are in cache for the next operation."""
    return _on_cpu(rows)


def searches_in_pieces(margin: Tensor) -> bool:
    """Whether to look for the largest of a row piece by piece, and not by torch.topk alone."""
    return _on_cpu(margin)


def samples_products(factor: Tensor) -> bool:
    """Whether torch's sampled product makes single entries of a product with this factor."""
    return _on_cpu(factor) and factor.dtype in (torch.float32, torch.float64)


def reads_in_order_of_tokens(factor: Tensor) -> bool:
    """Whether a factor's rows are read in the order of the tokens, and not in their own."""
    return factor.numel() <= CACHED


def rows_of_block(dense: Tensor, width: int, entries: int) -> int:
    """How many rows of a factor to sum at once.

    Args:
        dense: [tokens, d].
        width: number of sums.
        entries: how many sums each row enters.

    Returns:
        As many as caches hold if blocks are faster, else all.
    """
    size = max(BLOCK // dense.shape[1], 1)
    # embedding_bag adds up bfloat16 in float32, and blocks would round in between.
    pays = size * entries >= BLOCK_ENTRIES * width and dense.dtype.itemsize >= 4
    return size if pays and _on_cpu(dense) else len(dense)


def may_sum_rows(codes: Tensor) -> bool:
    """Whether sums of rows may be faster than products, so that counting ones is worth it."""
    return _on_cpu(codes)


def sums_rows(active: Tensor) -> bool:
    """Whether sums of rows are faster than dense products with bool codes on the CPU."""
    return bool(active.count_nonzero() <= SPARSE_DENSITY * active.numel())


def may_multiply_bytes(codes: Tensor) -> bool:
    """Whether products of bytes may be the fastest for codes [tokens, latents]."""
    # Of a single number torch 2.13's products of bytes read past a transposed factor's end.
    return _on_cpu(codes) and min(codes.shape) >= 2 and multiplies_bytes()


def sums_rows_before_bytes(active: Tensor) -> bool:
    """Whether sums of rows are faster than products of bytes with bool codes on the CPU."""
    return bool(active.count_nonzero() <= BYTE_DENSITY * active.numel())


def counts_pairs_one_by_one(entries: int, tokens: int, latents: int) -> bool:
    """Whether to count each pair of ones of a token apart, and not by sums of rows."""
    return entries <= PAIRED_DENSITY * tokens * latents


def screens_in_bfloat16(centred: Tensor, weight: Tensor) -> bool:
    """Whether a product in bfloat16 may tell the largest margins from the others.

    Args:
        centred: [..., d_in], the encoder's input.
        weight: [d_in, latents].
    """
    return (
        _on_cpu(weight)
        and centred.dtype == weight.dtype == torch.float32
        and product_dtype(centred) == torch.float32
        and not torch.compiler.is_compiling()
        and centred.numel() >= FEWEST_TOKENS * len(weight)
        and len(weight) >= FEWEST_DIMENSIONS
        and multiplies_bfloat16()
    )


def product_dtype(factor: Tensor) -> torch.dtype:
    """The dtype in which autocast would multiply; it does so only if it makes the output."""
    device = factor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return factor.dtype


def draws_on_gpu(device: torch.device) -> bool:
    """Whether random numbers for this device come from a GPU's own generator."""
    return device.type == "cuda"


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"
