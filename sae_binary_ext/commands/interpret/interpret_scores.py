"""Scores of latents by judges, the file that keeps them, and their means for each coder."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled
from sae_binary_ext.measure.saved_records import SavedRecords

# Bands of firing rates. The first paper treats the last band, ultra-high-frequency latents,
# separately.
BANDS = (("below 0.1%", 1e-3), ("0.1% to 1%", 1e-2), ("1% to 10%", 0.1), ("10% to 50%", 0.5))
ULTRA_HIGH = "above 50%"
MEASURES = ("area", "accuracy", "f1")


@dataclass(frozen=True)
class LatentScore:
    """Score of one latent by one judge.

    Attributes:
        firings: number of tokens on which the latent is active; rate is its firing rate.
        judge: the method and the model that answered.
        area, accuracy: area under the ROC curve, and share of right answers; chance gives 0.5.
        f1: F1 score of answering that the latent is active.
        failed: number of answers that did not come or could not be read; no score counts them.
        answered: number of answers that could be read.
        reason: why there is no score; None if there is one.
        explanation: the judge's description of the latent.
    """

    coder: str
    latent: int
    firings: int
    rate: float
    judge: str
    area: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    failed: int = 0
    answered: int = 0
    reason: str | None = None
    explanation: str | None = None

    @property
    def band(self) -> str:
        """The band that the firing rate is in."""
        return next((name for name, end in BANDS if self.rate < end), ULTRA_HIGH)


def f1_of(true_positives: int, false_positives: int, false_negatives: int) -> float:
    """F1 = 2 TP / (2 TP + FP + FN); 0 if no window is active and none is judged active."""
    told = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / told if told else 0.0


def area_of(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve: share of pairs with the positive higher; a tie counts one half."""
    return (((positive[:, None] - negative).sign() + 1) / 2).mean().item()


def mean_over_latents(figures: Iterable[tuple[float | None, float]]) -> Estimate:
    """Weighted mean of figures, with an interval by resampling latents.

    Each figure comes with its weight. Figures that are None do not count.
    """
    known = [(value, weight) for value, weight in figures if value is not None]
    if not known:
        return Estimate(float("nan"), float("nan"), float("nan"))
    values, weights = torch.tensor(known, dtype=torch.float64).unbind(1)
    drawn = resampled(len(values))
    return estimate_of((values * weights)[drawn].sum(1) / weights[drawn].sum(1))


class SavedScores(SavedRecords[LatentScore]):
    """A file of scores. `of` is the fingerprint of coders, text and settings."""

    def __init__(self, path: Path, of: str) -> None:
        super().__init__(path, of, LatentScore, ("coder", "latent", "judge"))


def read_scores(path: Path) -> list[LatentScore]:
    """All scores in a file of SavedScores. ValueError if it is no such file."""
    try:
        _, *lines = path.read_text().splitlines()
        return [LatentScore(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"scores={path}: cannot be read as scores ({error}). Give the scores.jsonl of a run "
            "of sae-binary interpret."
        ) from error


@dataclass(frozen=True)
class CoderScores:
    """Scores of one coder by one judge, one for each latent drawn.

    A measure is one of MEASURES. If a band of firing rates is given, only latents in the band
    count.
    """

    coder: str
    judge: str
    scores: list[LatentScore]

    def mean(self, measure: str, band: str | None = None) -> Estimate:
        """Mean over the latents that have a score, each counted once."""
        return mean_over_latents((getattr(each, measure), 1.0) for each in self._scored(band))

    def firing_weighted(self, measure: str) -> Estimate:
        """Mean weighted by firings, Σ score · firings / Σ firings.

        Source: the first paper's adjustment for frequency.
        """
        scored = self._scored()
        return mean_over_latents((getattr(each, measure), each.firings) for each in scored)

    def scored(self, band: str | None = None) -> int:
        """Number of latents that have a score."""
        return len(self._scored(band))

    def drawn(self, band: str | None = None) -> int:
        """Number of latents that were drawn."""
        return sum(band in (None, score.band) for score in self.scores)

    def reasons(self) -> dict[str, int]:
        """Number of latents without a score, for each reason."""
        return dict(Counter(score.reason for score in self.scores if score.reason is not None))

    def failed(self) -> int:
        """Number of answers that did not come or could not be read."""
        return sum(score.failed for score in self.scores)

    def _scored(self, band: str | None = None) -> list[LatentScore]:
        return [
            score for score in self.scores if score.reason is None and band in (None, score.band)
        ]
