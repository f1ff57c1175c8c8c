"""Reads and appends results, one line of JSON each, so that an interrupted comparison continues."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.result_lines import ResultsFile
from benchmarks.scale.cases import SEARCH_SITE, SEARCH_TOKENS, Run, searched, tuned_cases

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")
# On curves of FVU by bits, FVU falls about as bits to the power of -0.45. Searched settings change
# the bits a little, so the best is chosen by the FVU moved along such a curve to this many bits.
SLOPE, AT_BITS = 0.45, 300
KEY = ("site", "tokens", "seed", "settings")


def missing(runs: list[Run]) -> list[Run]:
    """The runs that have no result."""
    done = [{name: line[name] for name in KEY} for line in RESULTS.read()]
    return [run for run in runs if json.loads(json.dumps(run.key())) not in done]


def is_of_search(line: dict[str, Any]) -> bool:
    """Whether a result is of the search for settings."""
    settings = [json.loads(json.dumps(case.settings())) for case in searched()]
    place = line["site"] == asdict(SEARCH_SITE) and line["tokens"] == SEARCH_TOKENS
    return place and line["settings"] in settings


def is_tuned(line: dict[str, Any]) -> bool:
    """Whether a result has its family's best settings, at one of the prices of its site."""
    return any(
        line["site"] == asdict(site) and line["settings"] == json.loads(json.dumps(case.settings()))
        for site, case in tuned_cases()
    )


def score(line: dict[str, Any]) -> float:
    """What settings are chosen by: the FVU on the rows for choosing, moved to AT_BITS bits."""
    choosing = line["choosing"]
    return choosing["fvu"] * (choosing["bits"] / AT_BITS) ** SLOPE
