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

# Share of entries up to which, on the CPU, sums of rows beat matrix products. At a share of a tenth
# they take half of the products' time or less (4096 tokens; 576 dimensions, or covariances).
SPARSE_DENSITY = 0.15


@dataclass(frozen=True)
class Picks:
    """Where the k entries of each row of a matrix S [tokens, width] stand that may not be zero.

    Attributes:
        index: int64 [tokens, k], their columns, none twice in a row.
        width: columns of S.
    """

    index: Tensor
    width: int

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """S @ dense: entries [tokens, k] and dense [width, d] to [tokens, d] in its dtype."""
        weights = values.to(dense.dtype)
        return F.embedding_bag(self.index, dense, per_sample_weights=weights, mode="sum")

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """S.T @ dense: entries [tokens, k] and dense [tokens, d] to [width, d] in its dtype."""
        order, starts, row = self._columns
        return _sum_rows(dense, row, starts, values.flatten()[order])

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        # Of the decoder's way back and the encoder's, the first to ask sorts for both.
        order, starts = _by_column(self.index.flatten(), self.width)
        return order, starts, order.div(self.index.shape[-1], rounding_mode="floor")


def _by_column(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The order that sorts entries by column, and where in it each column starts, [width]."""
    # Half the bytes, two thirds of the time.
    columns, order = column.to(torch.int32).sort()
    # Without bincount, which makes a GPU wait.
    every = torch.arange(width, device=column.device, dtype=torch.int32)
    return order, torch.searchsorted(columns, every)


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
