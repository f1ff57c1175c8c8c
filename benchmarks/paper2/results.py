"""Reads and appends results, one line of JSON each, and lists the runs to make."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.paper2.cases import ACTIVE, FAMILIES, NEAR, Case, searched
from benchmarks.paper2.coders import CoderRun, ScoreRun, Settings
from benchmarks.paper2.profiles import IN_CONTEXT, LAYERS, POSITIONS, ProfileRun, Reading
from benchmarks.result_lines import Line, ResultsFile

RESULTS = ResultsFile(Path(__file__).parent / "results.jsonl")
# Seeds of training; of prompts, each with weights of seed 0; and of coders of positions.
SEEDS = (0, 1, 2)
PROFILE_SEEDS, POSITION_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
Run = CoderRun | ScoreRun | ProfileRun
OneKind = TypeVar("OneKind", bound=Run)


def make(settings: Settings, run: Run) -> Line:
    """Make one run; a line of the file of results."""
    return run.make(settings)


def missing(runs: Sequence[OneKind]) -> list[OneKind]:
    """The runs that have no result."""
    lines = RESULTS.read()
    return [run for run in runs if line_of(run, lines) is None]


def line_of(run: Run, lines: Sequence[Line]) -> Line | None:
    """The result of a run, or None."""
    key = run.key()
    return next((line for line in lines if key.items() <= line.items()), None)


def search_runs(lines: Sequence[Line]) -> list[CoderRun]:
    """The next coder of each family whose price is not chosen yet."""
    return [
        CoderRun(next(case for case in searched(family) if found_l0(case, lines) is None), 0)
        for family in FAMILIES
        if chosen(family, lines) is None
    ]


def found_l0(case: Case, lines: Sequence[Line]) -> float | None:
    """L0 on training rows of a case of the search, or None if it was not run."""
    line = line_of(CoderRun(case, 0), lines)
    return None if line is None else float(line["train"]["l0"])


def chosen(family: str, lines: Sequence[Line]) -> Case | None:
    """The first case whose L0 is near ACTIVE, or the nearest one if all were run; else None."""
    own = searched(family)
    if FAMILIES[family].config is None:
        return own[0]

    def distance(l0: float) -> float:
        return max(l0, ACTIVE) / max(min(l0, ACTIVE), 1e-9)

    found = {case: distance(l0) for case in own if (l0 := found_l0(case, lines)) is not None}
    near = [case for case, far in found.items() if far <= NEAR]
    if near or len(found) == len(own):
        return near[0] if near else min(found, key=lambda case: found[case])
    return None


def coder_runs(seed: int, lines: Sequence[Line]) -> list[CoderRun]:
    """The chosen coders of a seed."""
    return [
        CoderRun(case, seed)
        for family, kind in FAMILIES.items()
        if kind.config is not None and (case := chosen(family, lines))
    ]


def score_runs(seed: int, judge: str, lines: Sequence[Line]) -> list[ScoreRun]:
    """The scores of a seed's coders by a judge: each coder's last way to give tokens first."""
    families = [(name, case) for name in FAMILIES if (case := chosen(name, lines))]
    runs = [
        (place, ScoreRun(case, seed, giving, judge))
        for name, case in families
        for place, giving in enumerate(reversed(FAMILIES[name].givings))
    ]
    return [run for _, run in sorted(runs, key=lambda each: each[0])]


def profile_runs() -> list[ProfileRun]:
    """The profiles of both layers by seeds of training, then those by seeds of prompts.

    Runs with the same states stand together. Other seeds of prompts come last, because the states
    of each take longest to read.
    """
    seeds = {Reading(IN_CONTEXT): PROFILE_SEEDS, Reading(POSITIONS): POSITION_SEEDS}
    return [
        *(
            ProfileRun(reading, layer, seed)
            for reading, own in seeds.items()
            for layer in LAYERS
            for seed in own
        ),
        *(ProfileRun(Reading(IN_CONTEXT, seed), LAYERS[0], 0) for seed in PROFILE_SEEDS[1:]),
    ]
