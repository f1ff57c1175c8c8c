"""The k largest margins of each token, and the next ones.

On the CPU a row is cut into pieces of equal length. The entries at one place of all pieces are a
set. The k largest of the row lie in the k sets with the largest maxima: each set that holds one of
them has a maximum at least as large. So the search goes over maxima first, then over k sets.
"""

import math
from functools import cache

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.processor import on_cpu

FEWEST_PIECES, MOST_PIECES = 4, 63


def largest(margin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest margins of each token of [..., latents], and their latents.

    Both are [..., k], in no order. The margins carry a gradient.
    """
    pieces = _pieces(margin.shape[-1], k) if on_cpu(margin) else 1
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
    """The k largest margins of each token, as largest finds them, then the next ones.

    One search for all would not tell which of several equal margins largest finds first. margin is
    [..., latents], without gradient, and is overwritten. more is at most k. The margins and their
    latents are both [..., k + more], the k largest first.
    """
    values, index = largest(margin, k)
    next_values, next_index = largest(margin.scatter_(-1, index, -torch.inf), more)
    return torch.cat((values, next_values), -1), torch.cat((index, next_index), -1)


@cache
def _pieces(latents: int, k: int) -> int:
    """The number of pieces in which to look for the k largest; 1 for torch's own topk.

    It must not depend on the tokens or threads: with another number the search may find other
    latents of equal margins.
    """
    # The searches go over latents / pieces and pieces * k numbers. Their sum is least near this.
    best = math.sqrt(latents / k)
    most = min(latents // k, MOST_PIECES)
    possible = [pieces for pieces in range(FEWEST_PIECES, most + 1) if latents % pieces == 0]
    return min(possible, key=lambda pieces: abs(math.log(pieces / best)), default=1)
