"""The covariance penalty, in blocks of latents.

Source: Cho et al. (arXiv 2509.20997). Written plainly it takes a matrix of latents x latents and
three matrix products in each step. Here a block of its columns is made at a time, and with it that
block's part of the gradient, for which only the covariances' signs are needed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.indexed import CodeMatrix, code_matrix
from sae_binary_ext.coding.ranks import sum_over_ranks

# Entries of a block of columns. Dense products want it large (64 MB in float32, a handful at a
# time), sums of rows want it within reach of the processor's cache.
DENSE_BLOCK, SPARSE_BLOCK = 2**24, 2**20
NARROWEST_BLOCK = 64


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
        matrix = code_matrix(rows)
        width = _block_width(matrix, rows.shape[1])
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = rows.new_zeros((), dtype=torch.float64)
        for start in range(0, rows.shape[1], width):
            block = slice(start, start + width)
            joint = sum_over_ranks(matrix.transposed_times(rows[:, block].contiguous()), group)
            scaled = _scaled_covariance(joint.to(exact), counts.to(exact), block, tokens)
            total += scaled.abs().sum(dtype=torch.float64)
            if gradient is not None:
                signs = scaled.sign_().to(rows.dtype)
                rates = (counts / tokens).to(rows.dtype)
                gradient[:, block] = matrix.times(signs) - rates @ signs
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


def _block_width(matrix: CodeMatrix, latents: int) -> int:
    entries = SPARSE_BLOCK if matrix.is_sparse else DENSE_BLOCK
    return max(NARROWEST_BLOCK, entries // latents)
