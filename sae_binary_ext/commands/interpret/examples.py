"""Chooses windows of a latent that a judge is shown, and windows that it is asked about."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from sae_binary_ext.commands.interpret.config import FEWEST_ASKED, FEWEST_SHOWN, InterpretConfig
from sae_binary_ext.commands.interpret.windows import ReadLatents

QUANTILES = 10
SEED = 0
DEAD = "dead"


@dataclass(frozen=True)
class ActiveExamples:
    """Windows in which a latent is active: tokens int64 and codes float32 [windows, length].

    Windows are ordered by highest activation, and cut into tenths. A window's quantile is the
    number of its tenth. The quantile is 0 if windows were drawn at random.
    """

    tokens: Tensor
    values: Tensor
    quantiles: list[int]


@dataclass(frozen=True)
class LatentExamples:
    """Windows by which a latent is judged. Silent windows are tokens, int64 [windows, length]."""

    latent: int
    firings: int
    rate: float
    shown: ActiveExamples
    asked: ActiveExamples
    silent_shown: Tensor
    silent_asked: Tensor


# A function from the tokens of shown windows [windows, length], and a mask of the pool's silent
# windows, bool [windows], to the order of the silent windows, hardest first.
Nearest = Callable[[Tensor, Tensor], Tensor]


def at_random(documents: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which to use windows, and the quantile of each window, which is always 0.

    One window of each document comes first, then a second window of each document, and so on.
    Windows of one article resemble each other, so examples come from many articles.
    """
    earlier: dict[int, count[int]] = {}
    rounds = [next(earlier.setdefault(document, count())) for document in documents.tolist()]
    return torch.tensor(rounds).argsort(stable=True), torch.zeros_like(documents)


def by_strength(strengths: Tensor) -> tuple[Tensor, Tensor]:
    """Order and quantiles if windows come from each tenth in turn, strongest first, as in delphi.

    Equal activations are in random order; all codes of a binary latent are equal. (delphi leaves
    equal ones in the order of the text, and may ask about a window that it has shown.)
    """
    ranked = strengths.argsort(descending=True, stable=True)
    size = len(ranked) // QUANTILES
    tenths = ranked[: size * QUANTILES].view(QUANTILES, size)
    generator = torch.Generator().manual_seed(SEED)
    shuffled = tenths.gather(1, torch.rand(QUANTILES, size, generator=generator).argsort(1))
    quantiles = torch.zeros_like(ranked)
    quantiles[tenths.T] = torch.arange(QUANTILES)
    return shuffled.T.flatten(), quantiles


def choose_examples(
    read: ReadLatents,
    place: int,
    silent: Tensor,
    pool: Tensor,
    config: InterpretConfig,
    nearest: Nearest | None,
) -> LatentExamples | str:
    """Choose the windows of one latent, or return the reason why it cannot be judged.

    `place` is the latent's place among those drawn. `pool` has tokens, int64 [windows, length], and
    `silent`, bool [windows], marks the windows in which the latent is silent. `nearest` orders
    silent windows; if None, they are drawn at random.
    """
    latent, firings, rate = read.facts(place)
    there = read.windows.there[place]
    fewest = FEWEST_SHOWN + FEWEST_ASKED
    if there.sum() < fewest:
        return "active in too few windows" if firings else DEAD
    if silent.sum() < fewest:
        return "silent in too few windows"
    tokens, values = read.windows.tokens[place][there], read.windows.values[place][there]
    if config.sampling == "random":
        order, quantiles = at_random(read.windows.documents[place][there])
    else:
        by_margin = config.sampling == "margin"
        strengths = read.windows.margins[place][there] if by_margin else values.amax(1)
        order, quantiles = by_strength(strengths)
    # If there are too few windows, show a third of them, and ask about the rest.
    few = max(FEWEST_SHOWN, min(config.shown, len(order) // 3))
    used = order[: few + config.asked]
    # Spread shown windows evenly (every third of 60), so that shown and asked come from all tenths.
    is_shown = (torch.arange(len(used) + 1) * few // len(used)).diff() > 0
    shown, asked = (
        ActiveExamples(tokens[own], values[own], quantiles[own].tolist())
        for own in (used[is_shown], used[~is_shown])
    )
    candidates = pool[silent]
    if nearest is not None:
        candidates = candidates[nearest(shown.tokens, silent)[: config.shown + config.asked]]
    # Shuffle silent windows, so that those shown and those asked about are equally hard.
    generator = torch.Generator().manual_seed(SEED + latent)
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    silent_shown, silent_asked = candidates[:few], candidates[few : len(used)]
    return LatentExamples(latent, firings, rate, shown, asked, silent_shown, silent_asked)
