"""Latents in order of what is thought to matter, in groups, and random ones to compare with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding import burstiness

# Of the latents nearest in firing rate, from how many a random one is drawn.
NEIGHBOURS = 8


class RunningLatents:
    """Firing of latents in a stream, in memory that does not grow with it.

    Attributes:
        tokens: read.
        fired: float64 [latents], tokens each is active on.
    """

    def __init__(self, latents: int) -> None:
        self.tokens = 0
        self.fired = torch.zeros(latents, dtype=torch.float64)
        self._sum = torch.zeros(latents, dtype=torch.float64)
        self._squared = torch.zeros(latents, dtype=torch.float64)

    def add(self, codes: Tensor) -> None:
        """Count codes [tokens, latents], binary or with values."""
        codes = codes.to("cpu", torch.float32)
        self.tokens += len(codes)
        self.fired += (codes != 0).sum(0)
        self._sum += codes.sum(0, dtype=torch.float64)
        self._squared += codes.square().sum(0, dtype=torch.float64)

    @property
    def rates(self) -> Tensor:
        """float64 [latents], firing rates."""
        return self.fired / self.tokens

    @property
    def means(self) -> Tensor:
        """float64 [latents], mean code; the firing rate of a binary one."""
        return self._sum / self.tokens

    @property
    def deviations(self) -> Tensor:
        """float64 [latents], standard deviation of each code; sqrt(p (1 - p)) of a binary one."""
        return (self._squared / self.tokens - self.means.square()).clamp_min(0).sqrt()


def by_burstiness(running: RunningLatents, rows: Tensor) -> Tensor:
    """log2 |h - rate| of the rarer of a latent's two states: from -1, at a rate of 1/2, to 0."""
    rates = running.rates
    rarer = (rates < 0.5).double()
    return burstiness(rarer, rates)


def by_rate(running: RunningLatents, rows: Tensor) -> Tensor:
    """Firing rate."""
    return running.rates


def by_effect(running: RunningLatents, rows: Tensor) -> Tensor:
    """Standard deviation of what a latent adds to the output: of its code, times its row's norm."""
    return running.deviations * rows.double().norm(dim=1).cpu()


# Of what was counted and the decoder's rows, what latents are ranked by, highest first.
RANKINGS: dict[str, Callable[[RunningLatents, Tensor], Tensor]] = {
    "burstiness": by_burstiness,
    "rate": by_rate,
    "effect": by_effect,
}


@dataclass(frozen=True)
class LatentGroup:
    """Latents that are changed together, and others for comparison.

    Attributes:
        name: for tables.
        latents: int64 [group], which.
        others: int64 [group], random latents that fire about as often, none of them in the group;
            fewer where there are not as many.
    """

    name: str
    latents: Tensor
    others: Tensor


def ranked_groups(
    running: RunningLatents, scores: Tensor, groups: int, singles: int, seed: int
) -> Iterator[LatentGroup]:
    """The first latents of a ranking one by one, then all that fired, in groups.

    Args:
        running: their firing.
        scores: float64 [latents], of which the highest come first.
        groups: how many, each with an equal share of all firings as far as latents can be shared.
        singles: how many latents one by one.
        seed: of the random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    order = scores.argsort(descending=True, stable=True)
    order = order[running.fired[order] > 0]
    for place, latent in enumerate(order[:singles, None]):
        others = alike_in_rate(running.fired, latent, generator)
        yield LatentGroup(f"latent {int(latent)} (number {place + 1})", latent, others)
    firings = running.fired[order]
    # By the middle of its firings: a latent belongs where most of them are.
    middle = firings.cumsum(0) - firings / 2
    share = (middle * groups / firings.sum()).long().clamp_max(groups - 1)
    for group in range(groups):
        latents = order[share == group]
        # A latent may fire as often as several groups' share.
        if len(latents):
            others = alike_in_rate(running.fired, latents, generator)
            yield LatentGroup(f"group {group + 1} of {groups}", latents, others)


def alike_in_rate(fired: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """For each latent a random one that fires about as often: one of the nearest in log rate.

    Args:
        fired: float64 [latents], tokens each is active on.
        latents: int64 [group], which are not to be drawn.
        generator: of the draw.

    Returns:
        int64 [at most group], none twice.
    """
    free = fired > 0
    free[latents] = False
    logs = fired.log()
    found: list[int] = []
    for latent in latents.tolist():
        candidates = free.nonzero()[:, 0]
        if not len(candidates):
            break
        nearest = (logs[candidates] - logs[latent]).abs().argsort(stable=True)[:NEIGHBOURS]
        drawn = nearest[torch.randint(len(nearest), (1,), generator=generator)]
        chosen = int(candidates[drawn])
        free[chosen] = False
        found.append(chosen)
    return torch.tensor(found, dtype=torch.long)
