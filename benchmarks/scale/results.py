"""Reads and appends results, one line of JSON each, so that an interrupted comparison continues."""

import json
from pathlib import Path
from typing import Any

from benchmarks.result_lines import ResultsFile
from benchmarks.scale.cases import (
    AUTOENCODER,
    DEFAULTS,
    SEARCH_LAYER,
    SKIP,
    TRANSCODER,
    Place,
    Run,
    default_runs,
    search_runs,
    tuned_runs,
)

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")
# On curves of FVU by bits, FVU falls about as bits to the power of -0.45. Searched settings change
# the bits a little, so the best is chosen by the FVU moved along such a curve to this many bits.
# Curves of transcoders are flatter (topk, k = 16 to 64), and with a skip connection even more so.
SLOPES, AT_BITS = {AUTOENCODER: 0.45, TRANSCODER: 0.15, SKIP: 0.09}, 300
KEY = ("site", "tokens", "seed", "settings")


def missing(runs: list[Run]) -> list[Run]:
    """The runs that have no result."""
    lines = RESULTS.read()
    return [run for run in runs if not any(is_of(line, [run]) for line in lines)]


def is_of(line: dict[str, Any], runs: list[Run]) -> bool:
    """Whether a result is of one of these runs."""
    keys = [json.loads(json.dumps(run.key())) for run in runs]
    return {name: line[name] for name in KEY} in keys


def is_of_search(line: dict[str, Any], kind: str) -> bool:
    """Whether a result is of the search for settings of a kind of coder."""
    return is_of(line, search_runs(kind))


def is_tuned(line: dict[str, Any], place: Place) -> bool:
    """Whether a result is of this place, with its family's best settings, at one of its prices."""
    return is_of(line, tuned_runs(place))


def score(line: dict[str, Any], kind: str, part: str = "choosing") -> float:
    """What settings are chosen by: the FVU on the rows for choosing, moved to AT_BITS bits."""
    rows = line[part]
    return rows["fvu"] * (rows["bits"] / AT_BITS) ** SLOPES[kind]


def pairs_with_defaults(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Results of default_runs, each with that of the family's best settings of the same price.

    The two have equal tokens and seed. A result whose pair is missing is left out.
    """
    place, found = Place(AUTOENCODER, SEARCH_LAYER), []
    for line in lines:
        if not is_of(line, default_runs()):
            continue
        name = line["case"].removesuffix(DEFAULTS)
        best = [
            run
            for run in tuned_runs(place)
            if (run.case.name, run.tokens, run.seed) == (name, line["tokens"], line["seed"])
        ]
        found += [(line, other) for other in lines if is_of(other, best)]
    return found
