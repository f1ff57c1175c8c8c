"""The k largest margins of each token, and the next largest.

On the CPU a row is cut into pieces of equal length. Entry i of every piece belongs to set i. The k
largest entries lie in the k sets with the largest maxima, because a set that holds one of them has
a maximum at least as large. So first search the sets' maxima, then the entries of k sets.
"""

import math
from functools import cache

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.processor import on_cpu, uses_kernel

FEWEST_PIECES, MOST_PIECES = 4, 63


def largest(margin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest margins of each token of [..., latents], and their latents.

    Both results are [..., k], in no particular order. The returned margins carry a gradient.
    """
    pieces = _pieces(margin.shape[-1], k) if on_cpu(margin) else 1
    if uses_kernel("pick_largest", margin) and margin.ndim == 2:
        from sae_binary_ext.coding.kernels.triton import pick_largest

        index = pick_largest(margin.detach(), margin.new_zeros(margin.shape[-1]).float(), k)[1]
        return margin.gather(-1, index), index
    if pieces == 1:
        values, index = margin.topk(k, dim=-1, sorted=False)
        return values, index
    sets = margin.detach().unflatten(-1, (pieces, -1))
    width = sets.shape[-1]
    best = sets.amax(-2).topk(k, dim=-1, sorted=False).indices
    candidates = sets.gather(-1, best.unsqueeze(-2).expand(*best.shape[:-1], pieces, k)).flatten(-2)
    values, place = candidates.topk(k, dim=-1, sorted=False)
    index = place.div(k, rounding_mode="floor") * width + best.gather(-1, place % k)
    return margin.gather(-1, index) if margin.requires_grad else values, index


def largest_and_next(margin: Tensor, k: int, more: int) -> tuple[Tensor, Tensor]:
    """The k largest margins of each token, as `largest` returns them, then the next largest.

    A single search for all k + more may choose other latents among equal margins than `largest`.
    margin is [..., latents], without gradient, and is overwritten. more is at most k. The returned
    margins and their latents are both [..., k + more], with the k largest first.
    """
    values, index = largest(margin, k)
    next_values, next_index = largest(margin.scatter_(-1, index, -torch.inf), more)
    return torch.cat((values, next_values), -1), torch.cat((index, next_index), -1)


@cache
def _pieces(latents: int, k: int) -> int:
    """The number of pieces to cut a row into for the k largest; 1 means torch's own topk.

    The number must not depend on the tokens or threads: another number may find other latents among
    equal margins.
    """
    # The two searches read latents / pieces and pieces * k numbers. This minimises their sum.
    best = math.sqrt(latents / k)
    most = min(latents // k, MOST_PIECES)
    possible = [pieces for pieces in range(FEWEST_PIECES, most + 1) if latents % pieces == 0]
    return min(possible, key=lambda pieces: abs(math.log(pieces / best)), default=1)
