"""The k largest margins of each token, and the k after these.

On the CPU rows are cut into pieces of equal length. Entries at one place of all pieces are a set,
and the k largest of a row lie within the k sets whose maxima are the largest: every set that one of
them lies in has a maximum at least as large.
"""

import math
from functools import cache

import torch
from torch import Tensor

from sae_binary_ext.coding.parts import rows_of_part

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
    pieces = _pieces(margin.shape[-1], k) if margin.device.type == "cpu" else 1
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

    Two cores, 4096 tokens, 4608 latents: 0.9 of its time at k = 16, 0.73 at 32, 0.5 at 128; with
    36,864 latents (1024 tokens) 0.5 to 0.6. The same however many tokens and threads there are: of
    equal margins another cut may pick others.
    """
    rows = rows_of_part(latents)

    def price(pieces: int) -> float:
        # Of the candidates, a third more to gather them.
        candidates = 4 / 3 * _price_of_topk(rows, pieces * k, k)
        return _price_of_topk(rows, latents // pieces, k) + candidates

    most = min(latents // k, MOST_PIECES)
    possible = [pieces for pieces in range(FEWEST_PIECES, most + 1) if latents % pieces == 0]
    best = min(possible, key=price, default=1)
    return best if possible and price(best) < 0.8 * _price_of_topk(rows, latents, k) else 1


def _price_of_topk(rows: int, length: int, k: int) -> float:
    """What torch's topk takes a row, in a quickselect's time for an element.

    From 64 k elements on it keeps a heap of the k largest: a fifth of the time an element, and the
    heap's own. Threads share rows of more than 2^15 elements in all; two are reckoned with.
    """
    work = length if length < 64 * k else length / 5 + 3 * k * math.log2(max(k, 2))
    return work / 2 if rows * length > 2**15 else work
