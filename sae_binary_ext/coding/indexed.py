"""Products with a matrix of which few entries are not zero, as sums of weighted rows.

embedding_bag is torch's fastest way on the CPU: for 1024 tokens, k = 32 of 4608 latents and 576
dimensions it takes 2 ms where the dense product takes 39, a CSR product 6 and a COO one 10 to 70.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# Share of entries up to which, on the CPU, sums of rows beat matrix products: 4096 tokens, 4608
# latents and 576 dimensions take 0.3 to 0.4 of their time at this share.
SPARSE_DENSITY = 0.1


def indexed_times_dense(values: Tensor, index: Tensor, dense: Tensor) -> Tensor:
    """S @ dense, where row n of S [tokens, width] holds values[n] at index[n].

    Args:
        values: [tokens, k].
        index: int64 [tokens, k].
        dense: [width, d].

    Returns:
        [tokens, d], in the dtype of dense.
    """
    return F.embedding_bag(index, dense, per_sample_weights=values.to(dense.dtype), mode="sum")


def indexed_transposed_times_dense(
    values: Tensor, index: Tensor, width: int, dense: Tensor
) -> Tensor:
    """S.T @ dense for the same S.

    Args:
        values: [tokens, k].
        index: int64 [tokens, k].
        width: columns of S.
        dense: [tokens, d].

    Returns:
        [width, d], in the dtype of dense.
    """
    order, starts = _by_column(index.flatten(), width)
    rows = order.div(index.shape[-1], rounding_mode="floor")
    weights = values.flatten()[order].to(dense.dtype)
    return F.embedding_bag(rows, dense, starts, per_sample_weights=weights, mode="sum")


def _by_column(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The order that sorts entries by column, and where in it each column starts, [width]."""
    columns, order = column.sort()
    # Without bincount, which makes a GPU wait.
    starts = torch.searchsorted(columns, torch.arange(width, device=column.device))
    return order, starts


class CodeMatrix(Protocol):
    """Codes [tokens, latents] as a factor of matrix products."""

    @property
    def is_sparse(self) -> bool:
        """Whether the products are sums of rows."""
        ...

    def times(self, dense: Tensor) -> Tensor:
        """Codes @ dense: [latents, d] to [tokens, d], in the dtype of dense."""
        ...

    def transposed_times(self, dense: Tensor) -> Tensor:
        """Codes.T @ dense: [tokens, d] to [latents, d], in the dtype of dense."""
        ...

    def counts(self) -> Tensor:
        """On how many tokens each latent is active, int64 [latents]."""
        ...


def code_matrix(codes: Tensor) -> CodeMatrix:
    """Codes in whichever form is expected to be faster.

    Args:
        codes: [tokens, latents], without gradient; bool for codes of 0 and 1, which saves time.
    """
    # Asking a GPU how dense codes are would make it wait, and it is at home with dense products.
    if codes.device.type != "cpu":
        return DenseMatrix(codes)
    active = codes if codes.dtype is torch.bool else codes != 0
    if active.count_nonzero() > SPARSE_DENSITY * codes.numel():
        return DenseMatrix(codes)
    row, column = active.nonzero(as_tuple=True)
    values = None if codes.dtype is torch.bool else codes[row, column]
    return SparseMatrix(row, column, values, *codes.shape)


@dataclass(frozen=True)
class DenseMatrix:
    """Codes whose products are matrix products.

    Attributes:
        codes: [tokens, latents], bool or floating point.
    """

    codes: Tensor
    is_sparse = False

    def times(self, dense: Tensor) -> Tensor:
        return self.codes.to(dense.dtype) @ dense

    def transposed_times(self, dense: Tensor) -> Tensor:
        return self.codes.to(dense.dtype).T @ dense

    def counts(self) -> Tensor:
        return self.codes.count_nonzero(0)


@dataclass(frozen=True)
class SparseMatrix:
    """Codes whose products are sums of rows.

    Attributes:
        row: int64 [entries], the tokens of the entries, ascending.
        column: int64 [entries], their latents.
        values: [entries], or None where all are 1.
        tokens: number of rows.
        latents: number of columns.
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

    @cached_property
    def _row_starts(self) -> Tensor:
        return torch.searchsorted(self.row, torch.arange(self.tokens, device=self.row.device))

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        order, starts = _by_column(self.column, self.latents)
        values = None if self.values is None else self.values[order]
        return self.row[order], starts, values


def _sum_rows(dense: Tensor, which: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    weights = None if weights is None else weights.to(dense.dtype)
    return F.embedding_bag(which, dense, starts, mode="sum", per_sample_weights=weights)
