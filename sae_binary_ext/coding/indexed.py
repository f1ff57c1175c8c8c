"""Products with a matrix of which k entries a row are not zero, as sums of weighted rows.

embedding_bag is torch's fastest way on the CPU: for 1024 tokens, k = 32 of 4608 latents and 576
dimensions it takes 2 ms where the dense product takes 39, a CSR product 6 and a COO one 10 to 70.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    columns, order = index.flatten().sort()
    # Where each column's entries start, without bincount, which makes a GPU wait.
    starts = torch.searchsorted(columns, torch.arange(width, device=index.device))
    rows = order.div(index.shape[-1], rounding_mode="floor")
    weights = values.flatten()[order].to(dense.dtype)
    return F.embedding_bag(rows, dense, starts, per_sample_weights=weights, mode="sum")
