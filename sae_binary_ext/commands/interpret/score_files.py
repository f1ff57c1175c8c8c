"""Scores in files: one by one as they come, and what they amount to."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_binary_ext.commands.interpret.interpret_scores import (
    BANDS,
    MEASURES,
    ULTRA_HIGH,
    CoderScores,
    LatentScore,
)
from sae_binary_ext.measure.documents import CONFIDENCE, REPLICATES, Estimate
from sae_binary_ext.measure.progress import whole_lines
from sae_binary_ext.report.tables import aligned, finite, versions

SCHEMA_VERSION = 1
logger = logging.getLogger(__name__)


class SavedScores:
    """Scores in a file, a line each, written as they come; a run that is begun again has them.

    Args:
        path: the file.
        of: fingerprint of what is scored and how; scores of another one are left behind.
    """

    def __init__(self, path: Path, of: str) -> None:
        self._path = path
        self.scores: list[LatentScore] = []
        self._keys: set[tuple[str, int, str]] = set()
        header = json.dumps({"of": of}) + "\n"
        if path.is_file() and (lines := whole_lines(path)):
            if lines[0] == header:
                self.scores = [LatentScore(**json.loads(line)) for line in lines[1:]]
                self._keys = {_key(score) for score in self.scores}
                return
            logger.info("%s is of another run, and starts anew.", path)
        path.write_text(header)

    def has(self, coder: str, latent: int, judge: str) -> bool:
        """Whether there is a score, or a reason why there is none."""
        return (coder, latent, judge) in self._keys

    def add(self, scores: Iterable[LatentScore]) -> None:
        """Write scores down as they come; of those that are there already, nothing."""
        with self._path.open("a") as file:
            for score in scores:
                if _key(score) not in self._keys:
                    file.write(json.dumps(asdict(score)) + "\n")
                    file.flush()
                    self.scores.append(score)
                    self._keys.add(_key(score))


def _key(score: LatentScore) -> tuple[str, int, str]:
    return score.coder, score.latent, score.judge


def interpretation_table(found: list[CoderScores]) -> str:
    """A line a coder and judge; chance is 0.5 for area and accuracy."""
    header = ("coder", "judge", "scored", "area", "accuracy", "F1", "F1 by firings", "failed")
    rows: list[tuple[str, ...]] = [header]
    for each in found:
        scored = f"{each.scored()}/{each.drawn()}"
        means = [each.mean(measure) for measure in MEASURES]
        figures = [shown(figure) for figure in [*means, each.firing_weighted("f1")]]
        rows.append((each.coder, each.judge, scored, *figures, str(each.failed())))
    return aligned(rows)


def shown(figure: Estimate) -> str:
    """A figure with its interval; nothing where there is none."""
    if figure.value != figure.value:
        return ""
    interval = f" [{figure.low:.2f}, {figure.high:.2f}]" if figure.low == figure.low else ""
    return f"{figure.value:.2f}{interval}"


def write_interpretation(found: list[CoderScores], run: dict[str, Any], folder: Path) -> None:
    """interpretation.json (docs/interpret.md has the keys).

    Args:
        found: of each coder and judge.
        run: the command's settings.
        folder: where the file goes.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "versions": versions(),
        "intervals": {"confidence": CONFIDENCE, "replicates": REPLICATES, "of": "latents"},
        "coders": [_described(each) for each in found],
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    (folder / "interpretation.json").write_text(text)


def _described(found: CoderScores) -> dict[str, Any]:
    bands = [name for name, _ in BANDS] + [ULTRA_HIGH]
    return {
        "name": found.coder,
        "judge": found.judge,
        "drawn": found.drawn(),
        "scored": found.scored(),
        "not_scored": found.reasons(),
        "failed_answers": found.failed(),
        "mean": {measure: _value(found.mean(measure)) for measure in MEASURES},
        "firing_weighted": {m: _value(found.firing_weighted(m)) for m in MEASURES},
        "bands": {
            band: {"drawn": found.drawn(band), "scored": found.scored(band)}
            | {measure: _value(found.mean(measure, band)) for measure in MEASURES}
            for band in bands
        },
    }


def _value(figure: Estimate) -> dict[str, Any]:
    return {"value": finite(figure.value), "interval": [finite(figure.low), finite(figure.high)]}
