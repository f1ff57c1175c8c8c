"""The covariance penalty, in blocks of latents.

Source: Cho et al. (arXiv 2509.20997). Written plainly it takes a matrix of latents x latents and
three matrix products in each step. Here a block of its columns is made at a time, and with it that
block's part of the gradient, for which only the covariances' signs are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from sae_binary_ext.coding.ranks import sum_over_ranks

# Entries of a block of columns. Dense products want it large (64 MB in float32, a handful at a
# time), sums of rows want it within reach of the processor's cache.
DENSE_BLOCK, SPARSE_BLOCK = 2**24, 2**20
NARROWEST_BLOCK = 64
# Share of ones up to which, on the CPU, sums over active latents beat matrix products.
SPARSE_DENSITY = 0.1


def covariance_penalty(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over pairs i != j of |cov(h_i, h_j)|, unbiased over the batch (the paper's C).

    Of codes, which are 0 or 1, the sign of every covariance is exact, and so is the value up to the
    rounding of its last sum. At a covariance of zero the gradient is zero.

    Args:
        codes: [..., latents], at least two rows.
        group: the ranks whose batches make up one; None for a single process.

    Returns:
        A scalar, float32 or the wider dtype of codes.

    Raises:
        ValueError: fewer than two rows, whose covariance is undefined.
    """
    rows = codes.flatten(0, -2)
    if len(rows) < 2:
        raise ValueError(f"codes have {len(rows)} row: a covariance needs a batch of at least 2.")
    return _Penalty.apply(rows, group)  # pyright: ignore[reportReturnType]


class _Penalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, group: ProcessGroup | None) -> Tensor:
        rows = codes.to(torch.promote_types(codes.dtype, torch.float32))
        tokens = sum_over_ranks(rows.new_tensor(len(rows), dtype=torch.float64), group)
        counts = sum_over_ranks(rows.sum(0), group)
        # Whole numbers up to tokens^2, of which float32 holds each up to 2^24.
        few = group is None and len(rows) ** 2 <= 2**24
        exact = rows.dtype if few else torch.float64
        products = _products_of(rows)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = rows.new_zeros((), dtype=torch.float64)
        for start in range(0, rows.shape[1], products.width):
            block = slice(start, start + products.width)
            joint = sum_over_ranks(products.with_columns(block), group)
            scaled = _scaled_covariance(joint.to(exact), counts.to(exact), block, tokens)
            total += scaled.abs().sum(dtype=torch.float64)
            if gradient is not None:
                signs = scaled.sign_().to(rows.dtype)
                rates = (counts / tokens).to(rows.dtype)
                gradient[:, block] = products.times(signs) - rates @ signs
        ctx.ranks = 1 if group is None else group.size()
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_((2 / (tokens - 1)).to(rows.dtype)))
        ctx.dtype = codes.dtype
        return (total / (tokens * (tokens - 1))).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        # As often as there are ranks, over which DistributedDataParallel averages.
        return (gradient * (grad_outputs[0] * ctx.ranks)).to(ctx.dtype), None


def _scaled_covariance(joint: Tensor, counts: Tensor, block: slice, tokens: Tensor) -> Tensor:
    """tokens * (tokens - 1) times the covariances of a block of columns, 0 on the diagonal.

    Args:
        joint: [latents, width], sums over tokens of products of two codes.
        counts: [latents], sums over tokens of codes.
        block: its columns among the latents.
        tokens: number of tokens, a scalar.
    """
    scaled = joint.mul(tokens.to(joint.dtype)).sub_(counts[:, None] * counts[block])
    scaled.diagonal(-block.start).zero_()
    return scaled


@dataclass(frozen=True)
class _Products:
    """Products with the codes of a batch, rows [tokens, latents].

    Attributes:
        width: columns of a block.
        with_columns: (slice of latents) to rows.T @ rows[:, slice], [latents, width].
        times: (matrix [latents, width]) to rows @ matrix, [tokens, width].
    """

    width: int
    with_columns: Callable[[slice], Tensor]
    times: Callable[[Tensor], Tensor]


def _products_of(rows: Tensor) -> _Products:
    # Asking a GPU how dense codes are would make it wait, and it is at home with dense products.
    sparse = rows.device.type == "cpu" and rows.count_nonzero() <= SPARSE_DENSITY * rows.numel()
    return _sparse_products(rows) if sparse else _dense_products(rows)


def _dense_products(rows: Tensor) -> _Products:
    width = max(NARROWEST_BLOCK, DENSE_BLOCK // rows.shape[1])
    return _Products(width, lambda block: rows.T @ rows[:, block], lambda matrix: rows @ matrix)


def _sparse_products(rows: Tensor) -> _Products:
    """The same as sums of rows over the entries that are not zero."""
    tokens, latents = rows.shape
    row, column = rows.nonzero(as_tuple=True)
    values = rows[row, column]
    row_starts = torch.searchsorted(row, torch.arange(tokens))
    by_column = column.argsort(stable=True)
    column_starts = torch.searchsorted(column[by_column], torch.arange(latents))
    row_of, value_of = row[by_column], values[by_column]

    def with_columns(block: slice) -> Tensor:
        part = rows[:, block].contiguous()
        return F.embedding_bag(row_of, part, column_starts, mode="sum", per_sample_weights=value_of)

    def times(matrix: Tensor) -> Tensor:
        return F.embedding_bag(column, matrix, row_starts, mode="sum", per_sample_weights=values)

    return _Products(max(NARROWEST_BLOCK, SPARSE_BLOCK // latents), with_columns, times)
