"""Chooses how to compute a batch. Every choice by device or by share of ones is made here.

PATHS has the choices that differ between a CPU and a GPU and depend on nothing else. Codes with a
gradient for every latent always get torch's dense operation on a GPU. A GPU multiplies dense
matrices fast, starting a kernel costs more time than memory traffic, and reading the share of ones
would make it wait. On the CPU the choice depends on sizes, on the share of ones and on the
processor's instructions. The timings below were measured on two cores; benchmarks/ has the scripts.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """What computes codes on one kind of device.

    Attributes:
        latents_a_learner: use the index form from this many latents on for each latent that learns
            from a token, else the dense form.
        kernels: operations that our Triton kernels compute; torch computes the others. They are
            row_sums, row_dots, segment_sums, pick_largest and pack_bits.
    """

    latents_a_learner: int = 8
    kernels: frozenset[str] = frozenset()


# By torch's type of a device. No GPU was measured yet: "python -m benchmarks.gpu" prints the entry
# of "cuda". On two CPU cores, forward and backward of the index form take 0.74 to 0.84 of the dense
# form's time with 8 latents a learner, and 1.1 to 1.2 with 4 (benchmarks/paths.py).
PATHS: dict[str, Paths] = {"cpu": Paths(), "cuda": Paths()}

# Use sums of rows if at most this share of codes is 1. At a share of 0.1, sums take half the time
# of matrix products or less (4096 tokens; 576 dimensions, or covariances).
SPARSE_DENSITY = 0.15
# Count pairs of latents one by one if at most this share of codes is 1. Compared with sums of rows,
# counting takes 1/6 of the time at 31 active latents of 4608, and 1.5 of the time at 130.
PAIRED_DENSITY = 0.015
# Multiply bytes if at least this share of codes is 1. Compared with sums of rows, this takes 0.9 of
# the time at a share of 0.1, and 1.2 to 1.45 of it at 0.05 (covariances, 4096 tokens).
BYTE_DENSITY = 0.1
# Read a matrix's rows in token order if it has at most this many entries (16 MB in float32). Read a
# larger matrix in row order: row order takes 0.6 of the time at 21 MB, and 1.1 of it at 11 MB.
CACHED = 2**22
# Size of a cache block, 1 MB in float32. Use blocks only if each output row receives at least 40
# entries. Blocks take 0.72 to 0.83 of the time without them at 50 entries, and 1 to 3 of it at 25
# (128 to 1024 dimensions).
BLOCK, BLOCK_ENTRIES = 2**18, 40
# Entries of a cached part, 2 MB in float32, and its minimum of rows, as each call has a cost.
PART, FEWEST_ROWS = 2**19, 64
# Tokens of a block of products.
BLOCK_TOKENS = 1024
# Screen margins in bfloat16 only with at least this many tokens and dimensions, because rounding
# the weights also takes time.
FEWEST_TOKENS, FEWEST_DIMENSIONS = 1024, 256


def on_cpu(x: Tensor) -> bool:
    """Whether x is on the CPU. A GPU always gets torch's dense operation."""
    return x.device.type == "cpu"


def index_form_pays(latents: int, learners: int, device: torch.device) -> bool:
    """Whether the index form is faster, if this many of the latents learn from each token.

    A compiled step never takes it: torch.compile does not trace sorts that two passes share.
    """
    pays = learners * paths_on(device).latents_a_learner <= latents
    return pays and not torch.compiler.is_compiling()


def uses_kernel(name: str, x: Tensor) -> bool:
    """Whether our Triton kernel computes an operation on x. The name is that of Paths.kernels."""
    return name in paths_on(x.device).kernels


def paths_on(device: torch.device) -> Paths:
    """The entry of PATHS for a device. A kind of device without an entry gets that of a GPU."""
    return PATHS.get(device.type, PATHS["cuda"])


def knows_values(x: Tensor) -> bool:
    """Whether what is computed may depend on values of x. Reading them would make a GPU wait."""
    return on_cpu(x)


def certainly_none(mask: Tensor) -> bool:
    """Whether no entry of a bool mask is True; False where code may not depend on its values."""
    return knows_values(mask) and not mask.any()


def draws_on_gpu(device: torch.device) -> bool:
    """Whether random numbers for this device come from a GPU's own generator."""
    return device.type == "cuda"


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products. If not, float32 is faster."""
    return _has("avx512_bf16") or _has("amx_bf16")


def multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of one-byte integers."""
    return _has("avx512_vnni") or _has("amx_int8")


@cache
def _has(capability: str) -> bool:
    # Older versions of torch do not report the processor's instructions.
    return getattr(torch.cpu, "get_capabilities", dict[str, bool])().get(capability, False)


def cached_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows each of an array [tokens, latents]; on a GPU one view of all rows.

    The output of one operation on a part stays in the cache for the next operation.
    """
    return rows.split(rows_of_part(rows.shape[1])) if on_cpu(rows) else (rows,)


def rows_of_part(latents: int) -> int:
    """Number of rows of each part in cached_parts; the last part may have fewer."""
    return max(FEWEST_ROWS, PART // latents)


def blocks_of_rows(rows: Tensor) -> list[slice]:
    """Blocks of the rows of an array [tokens, latents] for products; on a GPU one block of all."""
    size = min(BLOCK_TOKENS, len(rows)) if on_cpu(rows) else len(rows)
    return [slice(first, first + size) for first in range(0, len(rows), max(size, 1))]


def samples_products(factor: Tensor) -> bool:
    """Whether torch's sampled_addmm can compute single entries of a product with this factor."""
    return on_cpu(factor) and factor.dtype in (torch.float32, torch.float64)


def reads_in_order_of_tokens(factor: Tensor) -> bool:
    """Whether to read a factor's rows in token order, instead of in row order."""
    return factor.numel() <= CACHED


def rows_of_block(dense: Tensor, width: int, entries: int) -> int:
    """Number of rows of dense [tokens, d] to sum at once; all rows if blocks are no faster.

    There are `width` sums, and each row of dense is added to `entries` of them.
    """
    size = max(BLOCK // dense.shape[1], 1)
    # embedding_bag sums bfloat16 in float32, but blocks would round between their sums.
    pays = size * entries >= BLOCK_ENTRIES * width and dense.dtype.itemsize >= 4
    return size if pays and on_cpu(dense) else len(dense)


def has_few_ones(active: Tensor, most: float) -> bool:
    """Whether at most this share of bool codes is True; the check would make a GPU wait."""
    return bool(active.count_nonzero() <= most * active.numel())


def may_multiply_bytes(codes: Tensor) -> bool:
    """Whether products of bytes may be the fastest for codes [tokens, latents]."""
    # If codes have a single row or column, torch 2.13's byte products read past a factor's end.
    return on_cpu(codes) and min(codes.shape) >= 2 and multiplies_bytes()


def screens_in_bfloat16(centred: Tensor, weight: Tensor) -> bool:
    """Whether to screen in bfloat16 for the largest margins of [..., d_in] @ [d_in, latents]."""
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
    """Dtype of products of this factor, under autocast its narrower one; float64 stays float64.

    Autocast itself ignores products with an out argument, and products in backward.
    """
    device = factor.device.type
    narrows = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if narrows and factor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return factor.dtype
