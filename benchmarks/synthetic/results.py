"""Reads and appends results, one line of JSON each, and chooses settings by those of the search."""

from dataclasses import asdict
from pathlib import Path

from benchmarks.result_lines import Line, ResultsFile
from benchmarks.synthetic.cases import (
    FAMILIES,
    FURTHER,
    PAIRED_RATES,
    PRICES,
    RATES,
    SEARCH_WORLD,
    SEEDS,
    TRUE_L0,
    WORLDS,
    Case,
)
from benchmarks.synthetic.running import Run

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")
KEY = ("world", "case", "seed")
# A coder whose number of active latents is further than this factor from the features' is not
# chosen, because explained variance alone would choose the coder with most active latents.
NEAREST = 1.25


def searched(family: str) -> list[Case]:
    """The cases of a family's search."""
    prices = PRICES.get(family)
    first = (
        [(lr, TRUE_L0) for lr in RATES]
        if prices is None
        else [(lr, price) for lr in PAIRED_RATES for price in prices]
    )
    return [Case(family, *pair) for pair in (*first, *FURTHER[family])]


def search_runs() -> list[Run]:
    """The runs by which each family's settings are chosen."""
    return [Run(SEARCH_WORLD, case, 0) for family in FAMILIES for case in searched(family)]


def tuned(family: str, lines: list[Line]) -> Case | None:
    """A family's best case of the search, by what a user can measure; None if some are missing.

    The best case explains most variance, among those with about as many active latents as
    features. If none has, it is the case with the nearest number.
    """
    cases = [asdict(case) for case in searched(family)]
    found = [line for line in lines if line["case"] in cases and _is_of_search(line)]
    if len(found) < len(cases):
        return None

    def distance(line: Line) -> float:
        l0 = max(line["sae_l0"], 1e-9)
        return max(l0 / line["true_l0"], line["true_l0"] / l0)

    near = [line for line in found if distance(line) <= NEAREST]
    best = (
        max(near, key=lambda line: line["explained_variance"]) if near else min(found, key=distance)
    )
    return Case(**best["case"])


def tuned_runs(lines: list[Line]) -> list[Run]:
    """The runs of the tables: each family's best case in each world, with each seed."""
    best = [case for family in FAMILIES if (case := tuned(family, lines))]
    return [Run(world, case, seed) for seed in SEEDS for world in WORLDS for case in best]


def missing(runs: list[Run]) -> list[Run]:
    """The runs that have no result."""
    done = [{name: line[name] for name in KEY} for line in RESULTS.read()]
    return [run for run in runs if run.key() not in done]


def _is_of_search(line: Line) -> bool:
    return line["world"] == SEARCH_WORLD and line["seed"] == 0
