"""The covariance penalty, in blocks of latents.

Source: Cho et al. (arXiv 2509.20997). The direct computation needs a matrix of latents x latents
and three matrix products in each step. This file makes one block of the matrix's columns at a time.
Each block also gives its part of the gradient, which needs only the signs of the covariances.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.kernels.processor import cached_parts
from sae_binary_ext.coding.kernels.ranks import sum_over_ranks
from sae_binary_ext.coding.kernels.seeding import seeded
from sae_binary_ext.coding.kernels.sparse import whole_matrix

# Number of entries in a block of columns. Dense products are fastest with large blocks (64 MB in
# float32). Sums of rows are fastest with blocks that fit the processor's cache.
DENSE_BLOCK, SPARSE_BLOCK = 2**24, 2**20
NARROWEST_BLOCK = 64


def covariance_penalty(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over pairs i != j of |cov(h_i, h_j)|, unbiased over the batch (the paper's C).

    The result is a scalar in float32, or in the dtype of codes if that is wider. For codes of 0 and
    1 the sign of each covariance is exact, and the penalty is exact up to the rounding of its last
    sum. A covariance of zero has a gradient of zero.

    Args:
        codes: [..., latents], at least two rows.
        group: the ranks whose batches together form one batch; None for a single process.

    Raises:
        ValueError: codes has fewer than two rows, so the covariance is undefined.
    """
    rows = _rows(codes)
    every = torch.arange(rows.shape[1], device=rows.device)
    return _Penalty.apply(rows, every, group)  # pyright: ignore[reportReturnType]


def sampled_covariance_penalty(
    codes: Tensor, sample: int, seed: int, group: ProcessGroup | None = None
) -> Tensor:
    """Unbiased estimate of covariance_penalty, from the covariances of a few latents with all.

    Averaged over seeds, its gradient equals that of covariance_penalty. Both have the same dtype.

    Args:
        codes: [..., latents], at least two rows.
        sample: number of latents to draw. If the coder does not have more latents, the penalty is
            exact.
        seed: seed of the draw; all ranks must give the same seed.
        group: the ranks whose batches together form one batch; None for a single process.

    Raises:
        ValueError: codes has fewer than two rows, or sample is below 1.
    """
    if sample < 1:
        raise ValueError(f"sample={sample!r}: give a number of latents of at least 1.")
    rows = _rows(codes)
    if sample >= rows.shape[1]:
        return covariance_penalty(rows, group)
    with seeded(seed, rows.device):
        drawn = torch.randperm(rows.shape[1], device=rows.device)[:sample]
    return _Penalty.apply(rows, drawn, group)  # pyright: ignore[reportReturnType]


def _rows(codes: Tensor) -> Tensor:
    rows = codes.flatten(0, -2)
    if len(rows) < 2:
        raise ValueError(f"codes have {len(rows)} row: a covariance needs a batch of at least 2.")
    return rows


class _Penalty(torch.autograd.Function):
    """Sum of |cov| over some columns without the diagonal, scaled up to all columns."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, columns: Tensor, group: ProcessGroup | None) -> Tensor:
        rows = codes.to(torch.promote_types(codes.dtype, torch.float32))
        latents = rows.shape[1]
        whole = len(columns) == latents
        tokens = sum_over_ranks(rows.new_full((), len(rows), dtype=torch.float64), group)
        counts = sum_over_ranks(rows.sum(0), group)
        rates = (counts / tokens).to(rows.dtype)
        # Products of two counts go up to tokens^2, but float32 is exact only up to 2^24.
        few = group is None and len(rows) ** 2 <= 2**24
        counts = counts.to(rows.dtype if few else torch.float64)
        matrix = whole_matrix(rows)
        new = torch.empty_like if whole else torch.zeros_like
        gradient = new(rows) if ctx.needs_input_grad[0] else None
        total = rows.new_zeros((), dtype=torch.float64)
        block_size = SPARSE_BLOCK if matrix.is_sparse and whole else DENSE_BLOCK
        width = max(NARROWEST_BLOCK, block_size // latents)
        for start, block in zip(range(0, len(columns), width), columns.split(width), strict=True):
            # Indexing with a slice makes no copy.
            place = slice(start, start + width) if whole else block
            part = rows[:, place]
            joint = sum_over_ranks(matrix.transposed_times(part), group).to(counts.dtype)
            # The covariances times tokens * (tokens - 1), with 0 on the diagonal. They are computed
            # in place, because allocating memory takes longer than the sums.
            scaled = joint.mul_(tokens.to(joint.dtype)).addr_(counts, counts[block], alpha=-1)
            scaled.scatter_(0, block[None], 0)
            for some in cached_parts(scaled):
                total += torch.linalg.vector_norm(some.double(), 1)
            if gradient is not None:
                signs = scaled.sign_().to(rows.dtype)
                side = matrix.times(signs).sub_(rates @ signs)
                if whole:
                    gradient[:, place] = side
                else:
                    gradient.index_add_(1, block, side)
                    other_side = whole_matrix(part).times(signs.T.contiguous())
                    gradient += other_side.sub_(signs @ rates[block])
        ctx.ranks = 1 if group is None else group.size()
        ctx.dtype = codes.dtype
        share = len(columns) / latents
        if gradient is not None:
            # The whole matrix is symmetric, so its rows add the same gradient as its columns.
            sides = 2 if whole else 1
            ctx.save_for_backward(gradient.mul_((sides / share / (tokens - 1)).to(rows.dtype)))
        return (total / share / (tokens * (tokens - 1))).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # Multiply by the number of ranks, because DistributedDataParallel averages over them.
        return (gradient * (grad_outputs[0] * ctx.ranks)).to(ctx.dtype), None, None
