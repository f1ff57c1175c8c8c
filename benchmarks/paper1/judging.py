"""Has judges score the latents of trained coders, and silences latents in order of their scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper1.cases import FORMS, KS, LATENTS, SEEDS, Case
from benchmarks.paper1.results import RESULTS, grid, line_of
from benchmarks.paper1.running import ensure_saved
from benchmarks.result_lines import Line, ResultsFile
from sae_binary_ext.commands import AblateConfig, InterpretConfig, run_ablate, run_interpret
from sae_binary_ext.commands.interpret.interpret_page import by_coder_and_judge
from sae_binary_ext.commands.interpret.interpret_run import TOKEN_BASELINE
from sae_binary_ext.commands.interpret.interpret_scores import CoderScores, read_scores
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_JUDGE, SCORERS
from sae_binary_ext.report.tables import as_json

JUDGED = ResultsFile(Path(__file__).parent / "judged.jsonl")
# Latents drawn of each coder, by the kind of the judge.
DRAWN = {"tokens": 300, "embedding": 100, "model": 100}
# In coders of this k the baseline scores all latents, and they are silenced in groups with equal
# numbers of firings.
SILENCED_K, GROUPS = 32, 8
ACTIVATIONS = "activations.safetensors"


@dataclass(frozen=True)
class Judge:
    """What tells from text whether a latent fires.

    Attributes:
        kind: tokens (single ones), embedding (of sentences) or model (a language model).
        url, model: a chat-completions server, and the language model's name on it.
    """

    kind: str
    url: str | None = None
    model: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The judge in files of scores; a language model judges in two ways."""
        if self.kind == "model":
            return tuple(f"{method}, {self.model}" for method in SCORERS)
        return (TOKEN_BASELINE if self.kind == "tokens" else EMBEDDING_JUDGE,)

    @property
    def measure(self) -> str:
        """The score of a latent: a language model says yes or no, which has no ROC curve."""
        return "accuracy" if self.kind == "model" else "area"

    def settings(self) -> dict[str, Any]:
        """Fields of InterpretConfig."""
        kind = "tokens" if self.kind == "model" else self.kind
        return {"judge": kind, "judge_url": self.url, "judge_model": self.model}


def judge_coders(folder: Path, layers: list[int], judge: Judge) -> None:
    """Score the coders of seed 0 that the grid has; append a line for each to JUDGED.

    Args:
        folder: has the model, activations and trained coders; gets the scores, and coders that
            it lacks.
        layers: the MLPs' layers.
        judge: the judge. An embedding and a language model need the extra delphi.
    """
    for cases in places(layers):
        judged = JUDGED.read()
        left = [
            case
            for case in cases
            if any(judged_line(case, name, judged) is None for name in judge.names)
        ]
        if left:
            for line in judge_place(folder, left, judge):
                JUDGED.append(line)


def places(layers: list[int]) -> Iterator[list[Case]]:
    """The trained cases of seed 0 of each layer, form and k, without places that have none.

    Transcoders come first, because autoencoders can take their file of activations.
    """
    lines = RESULTS.read()
    trained = [case for case in grid(layers, lines) if line_of(case, lines) is not None]
    for layer in layers:
        for form in reversed(FORMS):
            for k in KS:
                place = (layer, form, k, SEEDS[0])
                own = [case for case in trained if place == case_place(case)]
                if own:
                    yield own


def case_place(case: Case) -> tuple[int, str, int, int]:
    """Layer, form, k and seed of a case."""
    return case.layer, case.form, case.k, case.seed


def judged_line(case: Case, name: str, lines: list[Line]) -> Line | None:
    """The scores of a case by the judge of that name; None if there are none."""
    key = {**case.key(), "judge": name}
    return next((line for line in lines if key.items() <= line.items()), None)


def judged_folder(folder: Path, layer: int, form: str) -> Path:
    """Folder of what is judged of a layer's coders of one form."""
    return folder / "judged" / f"{form}-{layer}"


def activations_file(folder: Path, layer: int, form: str) -> Path:
    """The file of activations to read: that of transcoders if it is there, as it has both hooks."""
    both = judged_folder(folder, layer, "transcoder") / ACTIVATIONS
    return both if both.is_file() else judged_folder(folder, layer, form) / ACTIVATIONS


def judge_place(folder: Path, cases: list[Case], judge: Judge) -> Iterator[Line]:
    """Lines of scores of coders that read the same activations, and of what they lose."""
    layer, form, k, _ = case_place(cases[0])
    ensure_saved(folder, cases)
    of_place = judged_folder(folder, layer, form)
    of_place.mkdir(parents=True, exist_ok=True)
    coders = [str(case.folder(folder)) for case in cases]
    silences = judge.kind == "tokens" and k == SILENCED_K
    output = of_place / f"k{k}-{judge.kind}"
    shared: dict[str, Any] = {"model": str(folder / "model"), "output": output}
    interpret = InterpretConfig(
        **shared,
        **judge.settings(),
        latents=LATENTS if silences else DRAWN[judge.kind],
        activations=activations_file(folder, layer, form),
    )
    run_interpret(coders, interpret)
    path = output / "scores.jsonl"
    scores = by_coder_and_judge(read_scores(path))
    silenced: dict[str, list[Line]] = {}
    if silences:
        ablate = AblateConfig(
            **shared, ranking="score", scores=path, judge=TOKEN_BASELINE, groups=GROUPS, latents=0
        )
        for group in as_json(run_ablate(coders, ablate).results)["groups"]:
            silenced.setdefault(group["coder"], []).append(_short(group))
    for name in judge.names:
        of_judge = [each for each in scores if each.judge == name]
        for case, own in zip(cases, of_judge, strict=True):
            figures = _figures(own, judge.measure)
            yield {**case.key(), **figures, "silenced": silenced.get(own.coder, [])}


def _figures(scores: CoderScores, measure: str) -> Line:
    """Mean scores, each latent counted once and by firings; and rate and score of some latents.

    Latents start with random weights, so those with the lowest numbers are a random sample.
    """
    shown = [
        [float(f"{each.rate:.3g}"), round(score, 3)]
        for each in scores.scores[: DRAWN["tokens"]]
        if (score := getattr(each, measure)) is not None
    ]
    return {
        "judge": scores.judge,
        "drawn": scores.drawn(),
        "scored": scores.scored(),
        measure: as_json(scores.mean(measure)),
        "by_firings": as_json(scores.firing_weighted(measure)),
        "latents": shown,
    }


def _short(group: Line) -> Line:
    """What the table of silenced latents has of a group."""
    random = group["rise_of_random"]
    return {
        "latents": len(group["latents"]),
        "ones": group["rise"]["ones"],
        "loss": group["rise"]["loss"],
        "random_ones": random and random["ones"],
        "random_loss": random and random["loss"],
    }
