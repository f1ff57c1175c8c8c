"""Sparse weight gradients: products with a matrix of which k entries a row are not zero."""

import torch
from torch import Tensor


def indexed_times_dense(values: Tensor, index: Tensor, width: int, dense: Tensor) -> Tensor:
    """S @ dense, where row n of S [tokens, width] holds values[n] at index[n].

    Args:
        values: [tokens, k].
        index: int64 [tokens, k].
        width: columns of S.
        dense: [width, d].

    Returns:
        [tokens, d].
    """
    return _sparse_times_dense(_rows(index), index.flatten(), values, (len(index), width), dense)


def indexed_transposed_times_dense(
    values: Tensor, index: Tensor, width: int, dense: Tensor
) -> Tensor:
    """S.T @ dense for the same S, with dense [tokens, d]; returns [width, d]."""
    return _sparse_times_dense(index.flatten(), _rows(index), values, (width, len(index)), dense)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device).repeat_interleave(index.shape[-1])


def _sparse_times_dense(
    rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], dense: Tensor
) -> Tensor:
    # torch has no sparse product in 16-bit dtypes. Uncoalesced coordinates need no sorting, which
    # takes longer than the product.
    wide = torch.promote_types(dense.dtype, torch.float32)
    with torch.autocast(dense.device.type, enabled=False):
        sparse = torch.sparse_coo_tensor(
            torch.stack([rows, columns]),
            values.flatten().to(wide),
            shape,
            check_invariants=False,
        )
        return torch.sparse.mm(sparse, dense.to(wide)).to(dense.dtype)
