"""Finds candidates, the latents that may have a token's largest margins, by upper bounds.

There are two strategies. LargestBounds takes exactly the m largest bounds, so it finds fewer
candidates. BoundsAbove takes all bounds above the token's mean + c * standard deviation, in one
pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.largest import largest
from sae_binary_ext.coding.kernels.processor import cached_parts, rows_of_part

# SHORT has the numbers of probe tokens that may lack candidates; of_least_work takes the cheapest.
# PRICE is the time for each candidate, divided by the time for each latent if all margins are made.
SHORT, PRICE = (0, 1, 2, 3, 5, 8, 13, 21, 32), 2.5


@dataclass(frozen=True)
class Candidates:
    """Candidate latents of each token.

    column, int64 [entries], has the latents; no latent appears twice for a token. starts, int64
    [tokens + 1], has the positions in column where each token's latents start, and where the last
    token's end. others, float32 [tokens], is at least as large as every other latent's bound.
    others is undefined for a token without candidates.
    """

    starts: Tensor
    column: Tensor
    others: Tensor

    def rows(self, fewest: int) -> Tensor:
        """Positions in column, int64 [tokens, at least fewest], padded with len(column)."""
        counts = self.starts.diff()
        place = torch.arange(max(int(counts.max()), fewest), device=counts.device)
        entry = self.starts[:-1].unsqueeze(-1) + place
        return entry.masked_fill_(place >= counts.unsqueeze(-1), len(self.column))


# A Finder finds candidates from bounds, bfloat16 [tokens, latents].
Finder = Callable[[Tensor], Candidates]


@dataclass(frozen=True)
class LargestBounds:
    """A finder that returns the same number of candidates for each token."""

    count: int

    def __call__(self, bounds: Tensor) -> Candidates:
        found = [largest(part, self.count) for part in cached_parts(bounds)]
        values, index = (torch.cat(each) for each in zip(*found, strict=True))
        starts = torch.arange(0, index.numel() + 1, self.count, device=index.device)
        return Candidates(starts, index.flatten(), values.amin(-1).float())


@dataclass(frozen=True)
class BoundsAbove:
    """A finder that takes all bounds above a cut: the token's mean plus some standard deviations.

    deviations is a float32 scalar. A token with more than `most` candidates gets no candidates.
    """

    deviations: Tensor
    most: int

    @classmethod
    def of_least_work(cls, bounds: Tensor, least: Tensor, most: int) -> "BoundsAbove":
        """The cut that takes the least time on the probe tokens; there must be more than SHORT[-1].

        least is [tokens]. A token needs all margins if the cut is above its least. A lower cut
        finds more candidates, and fewer tokens then need all margins.
        """
        tokens, latents = bounds.shape
        mean, deviation = spread(bounds)
        tried = ((least - mean) / deviation).sort().values[list(SHORT)]
        work: list[Tensor] = []
        for short, deviations in zip(SHORT, tried, strict=True):
            counts = (bounds >= (mean + deviations * deviation).unsqueeze(-1)).float().sum(-1)
            whole = (short + (counts > most).sum()) / tokens
            work.append(PRICE * counts.clamp_max(most).mean() + whole * latents)
        return cls(tried[torch.stack(work).argmin()], most)

    def __call__(self, bounds: Tensor) -> Candidates:
        above = torch.empty_like(bounds, dtype=torch.bool)
        leasts: list[Tensor] = []
        size = rows_of_part(bounds.shape[1])
        # Use float32: bfloat16 takes twice as long to compare, and its norms have too few digits.
        room = bounds.new_empty(size, bounds.shape[1], dtype=torch.float32)
        for part, out in zip(bounds.split(size), above.split(size), strict=True):
            wide = room[: len(part)].copy_(part)
            mean, deviation = spread(wide)
            leasts.append(mean + self.deviations * deviation)
            torch.ge(wide, leasts[-1].unsqueeze(-1), out=out)
        starts, column = _entries(above)
        counts = starts.diff()
        if counts.max() > self.most:
            starts, column = _entries(above & (counts <= self.most).unsqueeze(-1))
        return Candidates(starts, column, torch.cat(leasts))


def spread(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each token, both [tokens], of float32 [tokens, latents]."""
    mean = bounds.mean(-1)
    # torch.std takes fifteen times as long as this computation.
    square = torch.linalg.vector_norm(bounds, dim=-1).square() / bounds.shape[-1]
    return mean, (square - mean.square()).clamp_min(0).sqrt()


def _entries(above: Tensor) -> tuple[Tensor, Tensor]:
    """Of a bool matrix: where each row's True entries start, [rows + 1], and all their columns."""
    row, column = above.nonzero(as_tuple=True)
    rows = torch.arange(len(above) + 1, device=row.device)
    return torch.searchsorted(row, rows), column
