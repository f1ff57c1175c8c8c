"""Products with a matrix that is mostly zero, computed as sums of weighted rows.

On the CPU, torch's embedding_bag is fastest: for 1024 tokens, k = 32 of 4608 latents and 576
dimensions it takes 2 ms. A dense product takes 39 ms, a CSR product 6 and a COO product 10 to 70
ms.
"""

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding.kernels import processor


@dataclass(frozen=True)
class Picks:
    """Columns of the k entries of each row of a matrix S [tokens, width] that may be non-zero.

    index, int64 [tokens, k], holds these columns; no column appears twice in a row. The first
    `fire` of the k entries (None: all) may be codes of 1. The other entries learn but do not fire.
    """

    index: Tensor
    width: int
    fire: int | None = None

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """S @ dense, [tokens, d] in dense's dtype; values is [tokens, k], dense [width, d]."""
        weights = values.to(dense.dtype)
        if processor.uses_kernel("row_sums", dense):
            return _triton().row_sums(self.index, weights, dense)
        return F.embedding_bag(self.index, dense, per_sample_weights=weights, mode="sum")

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """S.T @ dense, [width, d] in dense's dtype; values is [tokens, k], dense [tokens, d]."""
        if processor.uses_kernel("segment_sums", dense):
            order, starts, row = self._columns
            return _triton().segment_sums(row, values.flatten()[order], starts, dense)
        size = processor.rows_of_block(dense, self.width, self.index.shape[-1])
        if size >= len(dense):
            order, starts, row = self._columns
            return _sum_rows(dense, row, starts, values.flatten().index_select(0, order))
        total = dense.new_zeros(self.width, dense.shape[1])
        blocks = zip(self._blocks(size), values.split(size), dense.split(size), strict=True)
        for picks, entries, rows in blocks:
            total += picks.transposed_times(entries, rows)
        return total

    def row_dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Picked entries [tokens, k] of left @ right.T; left is [tokens, d], right [width, d]."""
        if processor.uses_kernel("row_dots", right):
            return _triton().row_dots(self.index, left, right)
        k, column = self.index.shape[-1], self.index.flatten()
        if not processor.samples_products(right):
            entry = torch.arange(len(column), device=column.device)
            # embedding_bag's own backward calls this function; a direct call skips the forward sum.
            return torch.ops.aten._embedding_bag_per_sample_weights_backward(
                left, right, column, entry[::k], entry // k, 0
            ).view(self.index.shape)
        if processor.reads_in_order_of_tokens(right):
            starts = torch.arange(0, len(column) + 1, k, device=column.device)
            return _sampled_product(left, right, starts, column).view(self.index.shape)
        return _dots_by_column(left, right, *self._columns).view(self.index.shape)

    def _blocks(self, size: int) -> list["Picks"]:
        """Picks of `size` tokens each, kept because decoder and encoder share their sorts."""
        if size not in self._blocks_of_size:
            blocks = self.index.split(size)
            self._blocks_of_size[size] = [Picks(index, self.width) for index in blocks]
        return self._blocks_of_size[size]

    @cached_property
    def _blocks_of_size(self) -> dict[int, list["Picks"]]:
        return {}

    @cached_property
    def firing(self) -> "Picks":
        """The picks that may hold codes of 1."""
        if self.fire is None or self.fire == self.index.shape[-1]:
            return self
        return Picks(self.index[:, : self.fire].contiguous(), self.width)

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        # The backward passes of decoder and encoder share this sort.
        order, starts = _by_column(self.index.flatten(), self.width)
        row = order.div(self.index.shape[-1], rounding_mode="floor")
        return order, starts, row


def _triton() -> Any:
    # Triton is not installed everywhere.
    from sae_binary_ext.coding.kernels import triton

    return triton


def row_dots(left: Tensor, right: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """Some entries of left [rows, d] @ right [columns, d].T, on the CPU, in float32 or float64.

    starts, int64 [rows + 1], holds where each row's entries start, and where the last row's end.
    column, int64 [entries], holds the column of each entry.
    """
    if processor.reads_in_order_of_tokens(right):
        return _sampled_product(left, right, starts, column)
    order, column_starts = _by_column(column, len(right))
    row = torch.arange(len(left), device=column.device)
    row = row.repeat_interleave(starts.diff(), output_size=len(column))
    return _dots_by_column(left, right, order, column_starts, row.index_select(0, order))


def _dots_by_column(
    left: Tensor, right: Tensor, order: Tensor, starts: Tensor, row: Tensor
) -> Tensor:
    """Computes row_dots by column: order sorts entries by column, and row holds their rows."""
    ends = starts.new_tensor([len(row)])
    dots = _sampled_product(right, left, torch.cat((starts, ends)), row)
    return torch.empty_like(dots).scatter_(0, order, dots)


def _sampled_product(left: Tensor, right: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """Computes row_dots row by row."""
    _spend_sparse_warning()
    values, shape = left.new_zeros(len(column)), (len(left), len(right))
    where = torch.sparse_csr_tensor(
        starts, column, values, shape, device=left.device, check_invariants=False
    )
    return torch.sparse.sampled_addmm(where, left, right.T, beta=0).values()


@cache
def _spend_sparse_warning() -> None:
    """Silence torch's warning about its first sparse matrix: users might look for their error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)


def _by_column(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The order that sorts entries by column, and each column's start in that order, [width]."""
    # int32 sorts five times as fast as int64.
    columns, order = column.to(torch.int32).sort()
    # torch.bincount would make a GPU wait.
    every = torch.arange(width, device=column.device, dtype=torch.int32)
    return order, torch.searchsorted(columns, every)


@dataclass(frozen=True)
class ByteMatrix:
    """Codes of 0 and 1 whose products with whole numbers from -128 to 127 are exact byte products.

    codes is int8 [tokens, latents].
    """

    codes: Tensor
    is_sparse = False

    def times(self, dense: Tensor) -> Tensor:
        return torch.ops.aten._int_mm(self.codes, dense.to(torch.int8)).to(dense.dtype)

    def transposed_times(self, dense: Tensor) -> Tensor:
        return torch.ops.aten._int_mm(self._transposed, dense.to(torch.int8)).to(dense.dtype)

    def counts(self) -> Tensor:
        return self.codes.sum(0)

    def add_pair_counts(self, counts: Tensor) -> None:
        counts += torch.ops.aten._int_mm(self._transposed, self.codes).triu_()

    @cached_property
    def _transposed(self) -> Tensor:
        return self.codes.T.contiguous()


@dataclass(frozen=True)
class DenseMatrix:
    """Codes [tokens, latents], bool or floating point, whose products are matrix products."""

    codes: Tensor
    is_sparse = False

    def times(self, dense: Tensor) -> Tensor:
        """Codes @ dense, [tokens, d] in the dtype of dense [latents, d]."""
        return self.codes.to(dense.dtype) @ dense

    def transposed_times(self, dense: Tensor) -> Tensor:
        """Codes.T @ dense, [latents, d] in the dtype of dense [tokens, d]."""
        return self.codes.to(dense.dtype).T @ dense

    def counts(self) -> Tensor:
        """The number of tokens on which each latent is active, int64 [latents]."""
        # On the CPU, count_nonzero(0) takes ten times as long as this sum.
        counts = self.codes.new_zeros(self.codes.shape[1], dtype=torch.int64)
        for part in processor.cached_parts(self.codes):
            counts += _active(part).float().sum(0).to(torch.int64)
        return counts

    def add_pair_counts(self, counts: Tensor) -> None:
        """Add, for each pair of latents i <= j, the number of tokens on which both are active.

        counts, int32 [latents, latents], is exact for fewer than 2^24 tokens, like float32.
        """
        active = self.codes.bool().float()
        counts += (active.T @ active).triu_().to(torch.int32)


@dataclass(frozen=True)
class SparseMatrix:
    """Codes [tokens, latents] whose products are sums of rows.

    row and column, int64 [entries], hold the token (ascending) and the latent of each entry. values
    is [entries], or None if all entries are 1.
    """

    row: Tensor
    column: Tensor
    values: Tensor | None
    tokens: int
    latents: int
    is_sparse = True

    def times(self, dense: Tensor) -> Tensor:
        return _sum_rows(dense, self.column, self._row_starts, self.values)

    def transposed_times(self, dense: Tensor) -> Tensor:
        row, starts, values = self._columns
        return _sum_rows(dense, row, starts, values)

    def counts(self) -> Tensor:
        starts = self._columns[1]
        return starts.diff(append=starts.new_tensor([len(self.column)]))

    def add_pair_counts(self, counts: Tensor) -> None:
        if len(self.column) > processor.PAIRED_DENSITY * self.tokens * self.latents:
            active = counts.new_zeros(self.tokens, self.latents, dtype=torch.float32)
            active[self.row, self.column] = 1
            row, starts, _ = self._columns
            counts += _sum_rows(active, row, starts, None).triu_().to(torch.int32)
            return
        # A row's entries are sorted by column. Pair each entry with itself, then with the next
        # entry, then with the entry after that, until its row ends.
        pairs, ahead = counts.view(-1), 0
        first = torch.arange(len(self.column), device=self.column.device)
        ends = torch.searchsorted(self.row, self.row, right=True)
        while len(first):
            place = self.column[first] * self.latents + self.column[first + ahead]
            pairs.index_add_(0, place, pairs.new_ones(1).expand(len(place)))
            ahead += 1
            lasts = first + ahead < ends
            first, ends = first[lasts], ends[lasts]

    @cached_property
    def _row_starts(self) -> Tensor:
        return torch.searchsorted(self.row, torch.arange(self.tokens, device=self.row.device))

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        order, starts = _by_column(self.column, self.latents)
        values = None if self.values is None else self.values.index_select(0, order)
        return self.row.index_select(0, order), starts, values


# Codes [tokens, latents] as a factor of matrix products, with the methods of DenseMatrix.
CodeMatrix = ByteMatrix | DenseMatrix | SparseMatrix


def code_matrix(codes: Tensor) -> CodeMatrix:
    """Codes [tokens, latents], without gradient, in the form whose products are faster.

    If all codes are 0 or 1, give them as bool, which is faster.
    """
    if processor.on_cpu(codes):
        active = _active(codes)
        if processor.has_few_ones(active, processor.SPARSE_DENSITY):
            return _sparse_matrix(codes, active)
    return DenseMatrix(codes)


def _active(codes: Tensor) -> Tensor:
    return codes if codes.dtype is torch.bool else codes != 0


def _sparse_matrix(codes: Tensor, active: Tensor) -> CodeMatrix:
    row, column = active.nonzero(as_tuple=True)
    values = None if codes.dtype is torch.bool else codes[row, column]
    return SparseMatrix(row, column, values, *codes.shape)


def whole_matrix(codes: Tensor) -> CodeMatrix:
    """As code_matrix, but for products with whole numbers from -128 to 127."""
    if not processor.may_multiply_bytes(codes):
        return code_matrix(codes)
    active = _active(codes)
    if processor.has_few_ones(active, processor.BYTE_DENSITY):
        return _sparse_matrix(codes, active)
    parts = zip(processor.cached_parts(codes), processor.cached_parts(active), strict=True)
    if all(torch.equal(part, ones.to(part.dtype)) for part, ones in parts):
        return ByteMatrix(active.view(torch.int8))
    return code_matrix(codes)


def _sum_rows(dense: Tensor, which: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    weights = None if weights is None else weights.to(dense.dtype)
    return F.embedding_bag(which, dense, starts, mode="sum", per_sample_weights=weights)
