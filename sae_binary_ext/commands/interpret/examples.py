"""Of one latent what a judge is shown, and what it is asked about."""

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
        quantiles: of each, the tenth of the windows, by highest activation, that it was drawn
            from; 0 for all where they were drawn without.
    """

    tokens: Tensor
    values: Tensor
    quantiles: list[int]


@dataclass(frozen=True)
class LatentExamples:
    """What one latent is judged by.

    Attributes:
        latent: its number.
        firings: tokens it is active on, of those read.
        rate: its firing rate.
        shown, asked: windows in which it is active; none is both.
        silent_shown, silent_asked: int64 [windows, length], tokens of those in which it is not.
    """

    latent: int
    firings: int
    rate: float
    shown: ActiveExamples
    asked: ActiveExamples
    silent_shown: Tensor
    silent_asked: Tensor


# Of a latent's windows, their documents and by how much it is active, each [windows], their order
# (the first are used) and of each the number of its quantile.
Sampling = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Of shown windows' tokens [windows, length] and of the silent windows of the pool, bool [windows],
# the order of the latter, hardest first.
Nearest = Callable[[Tensor, Tensor], Tensor]
DEAD = "dead"


def at_random(documents: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """A window of each document, then a second one of each, and so on; one quantile.

    Windows of one article resemble each other, whatever a latent stands for.
    """
    del strengths
    earlier: dict[int, count[int]] = {}
    rounds = [next(earlier.setdefault(document, count())) for document in documents.tolist()]
    return torch.tensor(rounds).argsort(stable=True), torch.zeros_like(documents)


def by_strength(documents: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """A window of each tenth, strongest first, in turn, as delphi draws them by default.

    Ties, of which binary latents' codes have nothing else, are in random order. (delphi leaves
    them in the text's, and may show a window that it also asks about.)
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


# "quantiles" ranks by code, delphi's default; "margin" by what the code was made of.
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
    """What one latent is judged by, or why it cannot be, in a few words.

    Args:
        read: of its coder.
        place: the latent's place among those drawn.
        silent: bool [windows of the pool], where it is silent.
        pool: int64 [windows of the pool, length], tokens.
        counts: how many.
        sampling: of the active windows, a key of SAMPLINGS.
        nearest: orders silent windows; None draws random ones.
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
        # All the hardest, in random order.
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
    """Windows to show and to ask about, a third and two thirds where there are too few."""
    shown = max(FEWEST_SHOWN, min(counts.shown, len(order) // 3))
    asked = min(counts.asked, len(order) - shown)
    used = order[: shown + asked]
    # Evenly spread (of 60 every third): both are then of as many documents, or of all tenths.
    upto = torch.arange(len(used) + 1) * shown // len(used)
    is_shown = upto.diff() > 0
    return used[is_shown], used[~is_shown]
