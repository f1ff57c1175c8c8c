"""Scores of latents' tokens by a judge, and the figures of a coder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled
from sae_binary_ext.report.plots import grouped

TOO_FEW = "given too few tokens"


@dataclass(frozen=True)
class ComsemScore:
    """Score of one latent.

    Attributes:
        coder: name of the coder.
        latent: number of the latent.
        given: tokens of the text that were given to the latent.
        absent: share of the given tokens on which it is silent.
        fitting: share of its own tokens that the phrase fits, the paper's score; None if there is
            no score.
        others_fitting: share of tokens not given to it that the phrase fits.
        answered: answers that both shares are computed from.
        failed: answers that did not come or could not be read; they are in no share.
        phrase: what its tokens have in common, in the words of a language model.
        reason: why there is no score; None if there is one.
    """

    coder: str
    latent: int
    given: int
    absent: float
    fitting: float | None = None
    others_fitting: float | None = None
    answered: int = 0
    failed: int = 0
    phrase: str | None = None
    reason: str | None = None

    def interpretable(self, at: float) -> bool:
        """Whether at least this share of its own tokens fits."""
        return self.fitting is not None and self.fitting >= at

    def told_apart(self, at: float) -> bool:
        """Whether it is interpretable, and at most 1 - at of the other tokens fit.

        A phrase that fits every token says nothing about the latent.
        """
        others = self.others_fitting
        return self.interpretable(at) and others is not None and others <= 1 - at


@dataclass(frozen=True)
class ComsemFigures:
    """Figures of one coder.

    Attributes:
        coder: its name.
        drawn: latents drawn.
        scored: latents with a score.
        interpretable: share of the drawn latents whose own tokens fit.
        told_apart: share of the drawn latents whose own tokens fit, and others do not.
        fitting, others_fitting: means over the scored latents.
        failed: answers that failed.
    """

    coder: str
    drawn: int
    scored: int
    interpretable: Estimate
    told_apart: Estimate
    fitting: Estimate
    others_fitting: Estimate
    failed: int


def figures_of(scores: Iterable[ComsemScore], at: float) -> list[ComsemFigures]:
    """Figures of each coder, with intervals over latents.

    Args:
        scores: scores of all latents drawn.
        at: share of its own tokens from which a latent counts as interpretable.
    """
    return [
        ComsemFigures(
            coder,
            len(group),
            sum(score.fitting is not None for score in group),
            _mean(group, lambda score: float(score.interpretable(at))),
            _mean(group, lambda score: float(score.told_apart(at))),
            _mean(group, lambda score: score.fitting),
            _mean(group, lambda score: score.others_fitting),
            sum(score.failed for score in group),
        )
        for coder, group in grouped(scores, lambda score: score.coder).items()
    ]


def _mean(scores: list[ComsemScore], of: Callable[[ComsemScore], float | None]) -> Estimate:
    values = torch.tensor(
        [value for score in scores if (value := of(score)) is not None], dtype=torch.float64
    )
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return estimate_of(values[resampled(len(values))].mean(1))
