"""Ranks latents and groups them; each group comes with random latents to compare with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding import burstiness

# A random latent is drawn from this number of latents with the nearest firing rates.
NEIGHBOURS = 8


class RunningLatents:
    """Running statistics of latents; `fired`, float64 [latents], counts firings over `tokens`."""

    def __init__(self, latents: int) -> None:
        self.tokens = 0
        self.fired = torch.zeros(latents, dtype=torch.float64)
        self._sum = torch.zeros(latents, dtype=torch.float64)
        self._squared = torch.zeros(latents, dtype=torch.float64)

    def add(self, codes: Tensor) -> None:
        """Add codes [tokens, latents], binary or with values."""
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
        """float64 [latents], mean code, which is the firing rate if codes are binary."""
        return self._sum / self.tokens

    @property
    def deviations(self) -> Tensor:
        """float64 [latents], standard deviation of the codes; sqrt(p (1 - p)) for binary ones."""
        return (self._squared / self.tokens - self.means.square()).clamp_min(0).sqrt()


# Scores of latents from their statistics and decoder rows. The highest score ranks first.
RANKINGS: dict[str, Callable[[RunningLatents, Tensor], Tensor]] = {
    # log2 |h - rate| for the rarer state h of each latent: -1 at a rate of 1/2, up to 0.
    "burstiness": lambda running, _: burstiness((running.rates < 0.5).double(), running.rates),
    "rate": lambda running, _: running.rates,
    # Standard deviation of a latent's code times the norm of its decoder row.
    "effect": lambda running, rows: torch.mul(running.deviations, rows.double().norm(dim=1).cpu()),
}


@dataclass(frozen=True)
class LatentGroup:
    """Latents to change together, int64 [group], with a name for tables.

    `others`, int64 [group], are random latents outside the group that fire about as often. There
    are fewer others if the coder has not enough latents.
    """

    name: str
    latents: Tensor
    others: Tensor


def ranked_groups(
    running: RunningLatents, scores: Tensor, groups: int, singles: int, seed: int
) -> Iterator[LatentGroup]:
    """The first `singles` latents of a ranking one by one; then groups of all latents that fired.

    Latents are ranked by scores, float64 [latents], highest first; those with NaN are left out.
    Each group has about an equal share of the firings of all groups. The seed is used to draw the
    random latents.
    """
    generator = torch.Generator().manual_seed(seed)
    order = scores.argsort(descending=True, stable=True)
    order = order[(running.fired[order] > 0) & ~scores[order].isnan()]

    def group(name: str, latents: Tensor) -> LatentGroup:
        return LatentGroup(name, latents, alike_in_rate(running.fired, latents, generator))

    for place, latent in enumerate(order[:singles, None], 1):
        yield group(f"latent {int(latent)} (number {place})", latent)
    firings = running.fired[order]
    # A latent belongs to the group that holds the middle of its firings.
    middle = firings.cumsum(0) - firings / 2
    share = (middle * groups / firings.sum()).long().clamp_max(groups - 1)
    for number in range(groups):
        latents = order[share == number]
        # A group can be empty: one latent may have the firings of several groups.
        if len(latents):
            yield group(f"group {number + 1} of {groups}", latents)


def alike_in_rate(fired: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """For each latent of a group, int64 [group], draw another one with nearly the same firing rate.

    `fired`, float64 [latents], counts the tokens on which each latent is active. Rates are compared
    by their logarithm. Returns int64, all different; fewer than the group if no latents are left.
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
        found.append(int(candidates[drawn]))
        free[found[-1]] = False
    return torch.tensor(found, dtype=torch.long)
