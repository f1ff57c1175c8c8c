"""Reads and appends results, one line of JSON each, and chooses learning rates by them."""

from pathlib import Path

from benchmarks.paper1.cases import FORMS, KINDS, KS, SEEDS, Case, searched
from benchmarks.result_lines import Line, ResultsFile

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")


def line_of(case: Case, lines: list[Line]) -> Line | None:
    """A case's result; None if it was not run."""
    key = case.key()
    return next((each for each in lines if all(each[name] == key[name] for name in key)), None)


def search_cases() -> list[Case]:
    """The cases by which learning rates are chosen."""
    return [case for form in FORMS for kind in KINDS for case in searched(kind, form)]


def tuned_factor(kind: str, form: str, lines: list[Line]) -> float | None:
    """The factor with the lowest FVU on rows for choosing; None if the search is not complete."""
    found = [(case, line_of(case, lines)) for case in searched(kind, form)]
    known = [(line["choosing"]["fvu"], case.factor) for case, line in found if line]
    return min(known)[1] if len(known) == len(found) else None


def grid(layers: list[int], lines: list[Line]) -> list[Case]:
    """The cases of the tables, with the chosen learning rates; all of one seed come first."""
    factors = {
        (kind, form): factor
        for kind in KINDS
        for form in FORMS
        if (factor := tuned_factor(kind, form, lines))
    }
    return [
        Case(layer, form, kind, k, seed, factors[kind, form])
        for seed in SEEDS
        for layer in layers
        for form in FORMS
        for k in KS
        for kind in KINDS
        if (kind, form) in factors
    ]


def missing(cases: list[Case]) -> list[Case]:
    """The cases that have no result."""
    lines = RESULTS.read()
    return [case for case in cases if line_of(case, lines) is None]
