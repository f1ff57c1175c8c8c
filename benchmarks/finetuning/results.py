"""Reads the results, one line of JSON each, and chooses each kind's learning rate by them."""

from pathlib import Path

from benchmarks.finetuning.coders import KINDS
from benchmarks.finetuning.running import SEARCH_TOKENS, TOKENS, Run
from benchmarks.result_lines import Line, ResultsFile

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")
# Learning rates, and the parameters that train with each; none named means all.
DECODERS = ("W_dec", "b_dec")
SEARCHED: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.005, ()),
    (0.01, ()),
    (0.02, ()),
    (0.04, ()),
    (0.02, DECODERS),
)


def search_runs() -> list[Run]:
    """The runs by which learning rates and parameters are chosen."""
    return [
        Run(kind, lr, parameters, SEARCH_TOKENS) for lr, parameters in SEARCHED for kind in KINDS
    ]


def final_run(kind: str, lines: list[Line]) -> Run | None:
    """The kind's longer run, with the setting of the lowest divergence; None before the search."""
    found = [(run, line_of(run, lines)) for run in search_runs() if run.kind == kind]
    known = [(line["last_divergence"], run) for run, line in found if line is not None]
    if len(known) < len(found):
        return None
    best = min(known, key=lambda pair: pair[0])[1]
    return Run(kind, best.lr, best.parameters, TOKENS)


def line_of(run: Run, lines: list[Line]) -> Line | None:
    """The result of a run, or None."""
    key = run.key()
    return next((line for line in lines if key.items() <= line.items()), None)
