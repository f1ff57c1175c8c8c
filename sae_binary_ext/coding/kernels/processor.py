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
# Read a matrix's rows in the order of the tokens up to this many entries (16 MB in float32). Read
# larger ones in the rows' own order: with 21 MB that takes 0.6 of the time, with 11 MB 1.1.
CACHED = 2**22
# Size of a cache block, 1 MB in float32. Block only if each output row receives at least 40
# entries: with 50 the time is 0.72 to 0.83 of that without blocks, with 25 it is 1 to 3 (128 to
# 1024 dimensions).
BLOCK, BLOCK_ENTRIES = 2**18, 40
# Entries of a cached part, 2 MB in float32, and its fewest rows: calls take time too.
PART, FEWEST_ROWS = 2**19, 64
# Screen margins in bfloat16 only with at least this many tokens and dimensions, since rounding the
# weights takes time too.
FEWEST_TOKENS, FEWEST_DIMENSIONS = 1024, 256


def on_cpu(x: Tensor) -> bool:
    """Whether sizes and the share of ones decide. A GPU gets torch's dense operation."""
    return x.device.type == "cpu"


def draws_on_gpu(device: torch.device) -> bool:
    """Whether random numbers for this device come from a GPU's own generator."""
    return device.type == "cuda"


def multiplies_bfloat16() -> bool:
    """Whether products of bfloat16 have instructions. Without them float32 is faster."""
    return _has("avx512_bf16") or _has("amx_bf16")


def multiplies_bytes() -> bool:
    """Whether products of whole numbers of a byte have instructions."""
    return _has("avx512_vnni") or _has("amx_int8")


@cache
def _has(capability: str) -> bool:
    # Older versions of torch cannot say.
    return getattr(torch.cpu, "get_capabilities", dict[str, bool])().get(capability, False)


def cached_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows each of [tokens, latents]; on a GPU one view of all rows.

    The output of one operation on a part is then still in cache for the next operation.
    """
    return rows.split(rows_of_part(rows.shape[1])) if on_cpu(rows) else (rows,)


def rows_of_part(latents: int) -> int:
    """How many rows a whole part has."""
    return max(FEWEST_ROWS, PART // latents)


def samples_products(factor: Tensor) -> bool:
    """Whether torch's sampled product makes single entries of a product with this factor."""
    return on_cpu(factor) and factor.dtype in (torch.float32, torch.float64)


def reads_in_order_of_tokens(factor: Tensor) -> bool:
    """Whether to read a factor's rows in the order of the tokens, and not in their own."""
    return factor.numel() <= CACHED


def rows_of_block(dense: Tensor, width: int, entries: int) -> int:
    """How many rows of dense [tokens, d] to sum at once; all, if blocks are no faster.

    There are `width` sums, and each row enters `entries` of them.
    """
    size = max(BLOCK // dense.shape[1], 1)
    # embedding_bag adds up bfloat16 in float32, and blocks would round in between.
    pays = size * entries >= BLOCK_ENTRIES * width and dense.dtype.itemsize >= 4
    return size if pays and on_cpu(dense) else len(dense)


def has_few_ones(active: Tensor, most: float) -> bool:
    """Whether at most this share of bool codes is True; a GPU would wait for it."""
    return bool(active.count_nonzero() <= most * active.numel())


def may_multiply_bytes(codes: Tensor) -> bool:
    """Whether products of bytes may be the fastest for codes [tokens, latents]."""
    # With a single row or column, torch 2.13's products of bytes read past a factor's end.
    return on_cpu(codes) and min(codes.shape) >= 2 and multiplies_bytes()


def screens_in_bfloat16(centred: Tensor, weight: Tensor) -> bool:
    """Whether bfloat16 may find the largest margins of [..., d_in] @ [d_in, latents]."""
    return (
        on_cpu(weight)
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
