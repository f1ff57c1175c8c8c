"""Windows of one latent that a judge is shown, and that it is asked about."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from sae_binary_ext.commands.interpret.config import FEWEST_ASKED, FEWEST_SHOWN, Counts
from sae_binary_ext.commands.interpret.drawn_windows import ReadLatents

QUANTILES = 10
SEED = 0


@dataclass(frozen=True)
class ActiveExamples:
    """Windows in which a latent is active.

    Attributes:
        tokens: int64 [windows, length].
        values: float32 [windows, length], its codes.
        quantiles: the tenth of the windows, ordered by highest activation, from which each was
            drawn; 0 if they were drawn without regard to activation.
    """

    tokens: Tensor
    values: Tensor
    quantiles: list[int]


@dataclass(frozen=True)
class LatentExamples:
    """The windows by which one latent is judged.

    Attributes:
        latent: its number.
        firings: tokens read on which it is active.
        rate: its firing rate.
        shown, asked: windows in which it is active; no window is in both.
        silent_shown, silent_asked: int64 [windows, length], tokens of silent windows.
    """

    latent: int
    firings: int
    rate: float
    shown: ActiveExamples
    asked: ActiveExamples
    silent_shown: Tensor
    silent_asked: Tensor


# Takes the documents of a latent's windows and its strength in each, both [windows]. Returns the
# order of the windows (the first ones are used) and the quantile of each.
Sampling = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Takes tokens of the shown windows [windows, length], and which windows of the pool are silent,
# bool [windows]. Returns the order of the silent windows, hardest first.
Nearest = Callable[[Tensor, Tensor], Tensor]
DEAD = "dead"


def at_random(documents: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """A window of each document, then a second one of each, and so on; one quantile.

    Windows of one article resemble each other, so examples come from many articles.
    """
    del strengths
    earlier: dict[int, count[int]] = {}
    rounds = [next(earlier.setdefault(document, count())) for document in documents.tolist()]
    return torch.tensor(rounds).argsort(stable=True), torch.zeros_like(documents)


def by_strength(documents: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """A window of each tenth, strongest first, in turn, as delphi draws them by default.

    Ties are in random order; codes of binary latents are all ties. (delphi leaves ties in the order
    of the text, and may ask about a window that it has shown.)
    """
    del documents
    ranked = strengths.argsort(descending=True, stable=True)
    size = len(ranked) // QUANTILES
    tenths = ranked[: size * QUANTILES].view(QUANTILES, size)
    generator = torch.Generator().manual_seed(SEED)
    shuffled = tenths.gather(1, torch.rand(QUANTILES, size, generator=generator).argsort(1))
    quantiles = torch.zeros_like(ranked)
    quantiles[tenths.T] = torch.arange(QUANTILES)
    return shuffled.T.flatten(), quantiles


# "quantiles" ranks windows by code, as delphi does by default; "margin" ranks them by margin.
SAMPLINGS: dict[str, Sampling] = {
    "random": at_random,
    "quantiles": by_strength,
    "margin": by_strength,
}


def choose_examples(
    read: ReadLatents,
    place: int,
    silent: Tensor,
    pool: Tensor,
    counts: Counts,
    sampling: str,
    nearest: Nearest | None,
) -> LatentExamples | str:
    """Choose the windows of one latent, or return the reason why it cannot be judged.

    Args:
        read: firings and windows of its coder.
        place: the latent's place among those drawn.
        silent: bool [windows of the pool], whether the latent is silent in each.
        pool: int64 [windows of the pool, length], tokens.
        counts: how many windows to choose.
        sampling: how to draw active windows, a key of SAMPLINGS.
        nearest: orders silent windows; None draws them at random.
    """
    latent, firings, rate = read.facts(place)
    there = read.windows.there[place]
    number = int(there.sum())
    if number < FEWEST_SHOWN + FEWEST_ASKED:
        return "active in too few windows" if firings else DEAD
    if silent.sum() < FEWEST_SHOWN + FEWEST_ASKED:
        return "silent in too few windows"
    tokens, values = read.windows.tokens[place][there], read.windows.values[place][there]
    strengths = read.windows.margins[place][there] if sampling == "margin" else values.amax(1)
    order, quantiles = SAMPLINGS[sampling](read.windows.documents[place][there], strengths)
    shown, asked = _dealt(order, counts)

    candidates = pool[silent]
    generator = torch.Generator().manual_seed(SEED + latent)
    if nearest is None:
        ordered = torch.randperm(len(candidates), generator=generator)
    else:
        # A random order, so that shown and asked windows are equally hard.
        hardest = nearest(tokens[shown], silent)[: counts.shown + counts.asked]
        ordered = hardest[torch.randperm(len(hardest), generator=generator)]
    few = len(shown)
    return LatentExamples(
        latent,
        firings,
        rate,
        ActiveExamples(tokens[shown], values[shown], quantiles[shown].tolist()),
        ActiveExamples(tokens[asked], values[asked], quantiles[asked].tolist()),
        candidates[ordered[:few]],
        candidates[ordered[few : few + len(asked)]],
    )


def _dealt(order: Tensor, counts: Counts) -> tuple[Tensor, Tensor]:
    """Windows to show and to ask about: a third and two thirds if there are too few."""
    shown = max(FEWEST_SHOWN, min(counts.shown, len(order) // 3))
    asked = min(counts.asked, len(order) - shown)
    used = order[: shown + asked]
    # Shown windows are spread evenly (every third of 60), so that both come from all tenths.
    upto = torch.arange(len(used) + 1) * shown // len(used)
    is_shown = upto.diff() > 0
    return used[is_shown], used[~is_shown]
