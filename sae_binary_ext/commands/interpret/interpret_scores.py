"""What a judge found of latents, one by one, and the figures of a coder."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled

# Firing rates that latents are grouped by; those of the last group are apart in the first paper,
# ultra-high-frequency latents.
BANDS = (("below 0.1%", 1e-3), ("0.1% to 1%", 1e-2), ("1% to 10%", 0.1), ("10% to 50%", 0.5))
ULTRA_HIGH = "above 50%"
MEASURES = ("area", "accuracy", "f1")


@dataclass(frozen=True)
class LatentScore:
    """One latent as one judge found it.

    Attributes:
        coder, latent: which.
        firings: tokens it is active on, of those read.
        rate: its firing rate.
        judge: who asked, and who answered.
        area: area under the ROC curve; chance is 0.5.
        accuracy: share of right answers; chance is 0.5.
        f1: of the answers that it is active.
        failed: answers that did not come, or could not be read; they are in no score.
        answered: those that did.
        reason: why there is no score.
        explanation: what the judge took it to stand for.
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
        """Its group of firing rates."""
        return next((name for name, end in BANDS if self.rate < end), ULTRA_HIGH)


def f1_of(true_positives: int, false_positives: int, false_negatives: int) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is, or is said to be, active."""
    told = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / told if told else 0.0


def area_of(positive: Tensor, negative: Tensor) -> float:
    """Share of pairs in which the positive has the higher score; half of those with the same."""
    return (((positive[:, None] - negative).sign() + 1) / 2).mean().item()


@dataclass(frozen=True)
class CoderScores:
    """All that one judge found of one coder.

    Attributes:
        coder, judge: which.
        scores: of each latent that was drawn.
    """

    coder: str
    judge: str
    scores: list[LatentScore]

    def mean(self, measure: str, band: str | None = None) -> Estimate:
        """Mean over the latents that have a score, each counting once.

        Args:
            measure: of MEASURES.
            band: only of these firing rates; None for all.
        """
        return self._mean(measure, band, lambda score: 1.0)

    def firing_weighted(self, measure: str) -> Estimate:
        """Mean in which each latent counts by its firings: Σ score · firings / Σ firings.

        The first paper's adjustment for frequency.
        """
        return self._mean(measure, None, lambda score: float(score.firings))

    def scored(self, band: str | None = None) -> int:
        """Latents with a score."""
        return sum(score.reason is None for score in self._of(band))

    def drawn(self, band: str | None = None) -> int:
        """Latents that were drawn."""
        return len(self._of(band))

    def reasons(self) -> dict[str, int]:
        """Of the others, how many for which reason."""
        return dict(Counter(score.reason for score in self.scores if score.reason is not None))

    def failed(self) -> int:
        """Answers that did not come, or could not be read."""
        return sum(score.failed for score in self.scores)

    def _of(self, band: str | None) -> list[LatentScore]:
        return [score for score in self.scores if band in (None, score.band)]

    def _mean(
        self, measure: str, band: str | None, weight: Callable[[LatentScore], float]
    ) -> Estimate:
        found = [
            (value, weight(score))
            for score in self._of(band)
            if (value := getattr(score, measure)) is not None and score.reason is None
        ]
        if not found:
            return Estimate(float("nan"), float("nan"), float("nan"))
        values, weights = torch.tensor(found, dtype=torch.float64).unbind(1)
        drawn = resampled(len(values))
        return estimate_of((values * weights)[drawn].sum(1) / weights[drawn].sum(1))


def by_coder_and_judge(scores: Iterable[LatentScore]) -> list[CoderScores]:
    """Scores of one coder by one judge together; of several judges they are never averaged."""
    groups: dict[tuple[str, str], list[LatentScore]] = {}
    for score in scores:
        groups.setdefault((score.coder, score.judge), []).append(score)
    return [CoderScores(*key, group) for key, group in groups.items()]
