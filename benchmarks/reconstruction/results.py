"""Reads and appends results, one line of JSON each, so that an interrupted comparison continues."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.reconstruction.activations import Site
from benchmarks.reconstruction.cases import Case

PARTS = ("choosing", "held_out", "held_out_articles")
RESULTS = Path(__file__).parent / "results.jsonl"


@dataclass(frozen=True)
class Figures:
    """A coder's figures on one part of a Split of activations.

    Attributes:
        fvu: share of variance unexplained.
        l0: mean active latents a token.
        dead: latents active on none of the tokens.
        dense: latents active on more than 10% of the tokens.
        entropy_bits: entropy of the firing rates, in bits a token.
        bits: description length, in bits a token.
    """

    fvu: float
    l0: float
    dead: int
    dense: int
    entropy_bits: float
    bits: float


@dataclass(frozen=True)
class Result:
    """Figures of one trained coder.

    Attributes:
        kind, layer: fields of the coder's Site.
        case: name of the case.
        settings: Case.settings() of the case.
        seed: seed of the weights and of the order of tokens.
        choosing, held_out, held_out_articles: figures on the part of the Split of this name.
        recovered: share of the cross-entropy lost by zero ablation that the coder recovers
            on held-out articles.
        seconds: time to train it, and to refit it if it was refitted.
    """

    kind: str
    layer: int
    case: str
    settings: dict[str, Any]
    seed: int
    choosing: Figures
    held_out: Figures
    held_out_articles: Figures
    recovered: float
    seconds: float


def read_results() -> list[Result]:
    """Read all results measured so far."""
    if not RESULTS.is_file():
        return []
    return [_from_json(json.loads(line)) for line in RESULTS.read_text().splitlines()]


def _from_json(values: dict[str, Any]) -> Result:
    figures = {name: Figures(**values[name]) for name in PARTS}
    return Result(**values | figures)


def append_result(result: Result) -> None:
    """Append one result to the file of results."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def find_results(results: list[Result], case: Case, site: Site) -> list[Result]:
    """The results of a case at a site, one for each seed. Results of old settings are ignored."""
    settings = json.loads(json.dumps(case.settings()))
    return [
        result
        for result in results
        if (result.kind, result.layer, result.settings) == (site.kind, site.layer, settings)
    ]
