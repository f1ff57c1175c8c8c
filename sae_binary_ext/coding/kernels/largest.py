"""The k largest margins of each token, and the k after these.

On the CPU rows are cut into pieces of equal length. Entries at one place of all pieces are a set,
and the k largest of a row lie within the k sets whose maxima are the largest: every set that one of
them lies in has a maximum at least as large.
"""

import math
from functools import cache

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.processor import searches_in_pieces

# In how many pieces a row is cut, where it is cut.
FEWEST_PIECES, MOST_PIECES = 4, 63


def largest(margin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest margins of each token.

    Args:
        margin: [..., latents].
        k: at most the number of latents.

    Returns:
        Margins, with gradient, and their latents, both [..., k], in no order.
    """
    pieces = _pieces(margin.shape[-1], k) if searches_in_pieces(margin) else 1
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
    """The k largest margins of each token, those that largest finds, and then the next ones.

    Of equal margins, all of them at once would leave open which largest finds first.

    Args:
        margin: [..., latents], without gradient; overwritten.
        k: how many come first.
        more: how many come after these, at most k.

    Returns:
        Margins and their latents, both [..., k + more], the k largest first.
    """
    values, index = largest(margin, k)
    next_values, next_index = largest(margin.scatter_(-1, index, -torch.inf), more)
    return torch.cat((values, next_values), -1), torch.cat((index, next_index), -1)


@cache
def _pieces(latents: int, k: int) -> int:
    """In how many pieces of equal length to look for the k largest; 1 for torch's own topk.

    Two searches go over latents / pieces and pieces * k numbers; their sum is least near the square
    root of latents / k. The same for any number of tokens and threads: another cut may pick other
    latents of equal margins.
    """
    best = math.sqrt(latents / k)
    most = min(latents // k, MOST_PIECES)
    possible = [pieces for pieces in range(FEWEST_PIECES, most + 1) if latents % pieces == 0]
    return min(possible, key=lambda pieces: abs(math.log(pieces / best)), default=1)
