"""Triton kernels for sums of rows, for codes stored as indices.

Their torch twins are methods of coding.kernels.sparse.Picks, with the same arguments.
"""

# pyright: basic, reportArgumentType=false
# Triton's language is untyped.

import triton
import triton.language as tl
from torch import Tensor

# Number of columns of a row that one program handles at a time.
BLOCK = 512


@triton.jit
def _row_sums(index, values, dense, out, k, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    for place in range(k):
        row = tl.load(index + token * k + place)
        value = tl.load(values + token * k + place).to(tl.float32)
        total += value * tl.load(dense + row * width + columns, mask=inside, other=0.0)
    tl.store(out + token * width + columns, total, mask=inside)


@triton.jit
def _row_dots(index, grad, dense, out, k, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1)
    row = tl.load(index + token * k + place)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        factor = tl.load(grad + token * width + columns, mask=inside, other=0.0).to(tl.float32)
        total += factor * tl.load(dense + row * width + columns, mask=inside, other=0.0)
    tl.store(out + token * k + place, tl.sum(total, 0))


@triton.jit
def _segment_sums(row, values, starts, dense, out, entries, segments, width, BLOCK: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first = tl.load(starts + segment)
    last = tl.load(starts + segment + 1, mask=segment + 1 < segments, other=entries)
    total = tl.zeros((BLOCK,), tl.float32)
    for entry in range(first, last):
        token = tl.load(row + entry)
        value = tl.load(values + entry).to(tl.float32)
        total += value * tl.load(dense + token * width + columns, mask=inside, other=0.0)
    tl.store(out + segment * width + columns, total, mask=inside)


def row_sums(index: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Kernel of Picks.times: sums of rows of `dense`.

    Args:
        index: int64 [tokens, k].
        values: [tokens, k].
        dense: [latents, width].

    Returns:
        [tokens, width], in the dtype of dense; summed in float32.
    """
    (tokens, k), width = index.shape, dense.shape[1]
    out = dense.new_empty(tokens, width)
    grid = (tokens, triton.cdiv(width, BLOCK))
    _row_sums[grid](
        index.contiguous(), values.contiguous(), dense.contiguous(), out, k, width, BLOCK
    )
    return out


def row_dots(index: Tensor, grad: Tensor, dense: Tensor) -> Tensor:
    """Gradient of row_sums with respect to values.

    Args:
        index: int64 [tokens, k].
        grad: [tokens, width], gradient of the sums.
        dense: [latents, width].

    Returns:
        [tokens, k], in the dtype of dense; summed in float32.
    """
    (tokens, k), width = index.shape, dense.shape[1]
    out = dense.new_empty(tokens, k)
    _row_dots[(tokens, k)](
        index.contiguous(), grad.contiguous(), dense.contiguous(), out, k, width, BLOCK
    )
    return out


def segment_sums(row: Tensor, values: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
    """Kernel of Picks.transposed_times, for entries sorted by column.

    Args:
        row: int64 [entries].
        values: [entries].
        starts: int64 [segments], where each column's entries start.
        dense: [tokens, width].

    Returns:
        [segments, width], in the dtype of dense; summed in float32, in the order of the entries.
    """
    segments, width = len(starts), dense.shape[1]
    out = dense.new_empty(segments, width)
    grid = (segments, triton.cdiv(width, BLOCK))
    _segment_sums[grid](
        row.contiguous(),
        values.contiguous(),
        starts.contiguous(),
        dense.contiguous(),
        out,
        len(row),
        segments,
        width,
        BLOCK,
    )
    return out
