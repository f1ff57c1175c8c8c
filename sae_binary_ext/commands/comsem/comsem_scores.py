"""What a judge found of latents' tokens, and the figures of a coder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled

TOO_FEW = "given too few tokens"


@dataclass(frozen=True)
class ComsemScore:
    """One latent as a judge found it.

    Attributes:
        coder, latent: which.
        given: tokens of the text that were given to it.
        absent: share of these on which it is silent.
        fitting: share of its own tokens that fit what they are said to have in common, the paper's
            score; None where there is none.
        others_fitting: the same share of tokens that were not given to it.
        answered: answers that these shares are of.
        failed: answers that did not come or could not be read; they are in no share.
        phrase: what its tokens have in common, as a language model has it.
        reason: why there is no score.
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
        """Whether so large a share of its own tokens fits."""
        return self.fitting is not None and self.fitting >= at

    def told_apart(self, at: float) -> bool:
        """Whether, beside that, few enough of the others fit: a phrase that fits everything says
        nothing of the latent."""
        others = self.others_fitting
        return self.interpretable(at) and others is not None and others <= 1 - at


@dataclass(frozen=True)
class ComsemFigures:
    """The figures of a coder; shares are of all latents drawn, dead ones too.

    Attributes:
        coder: its name.
        drawn: latents.
        scored: those with a score.
        interpretable: share of the drawn whose own tokens fit.
        told_apart: share of the drawn whose own tokens fit, and others do not.
        fitting, others_fitting: means over the scored.
        failed: answers.
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
    """Of each coder its figures, with intervals over latents.

    Args:
        scores: of all latents drawn.
        at: share of its own tokens from which a latent counts as interpretable.
    """
    groups: dict[str, list[ComsemScore]] = {}
    for score in scores:
        groups.setdefault(score.coder, []).append(score)
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
        for coder, group in groups.items()
    ]


def _mean(scores: list[ComsemScore], of: Callable[[ComsemScore], float | None]) -> Estimate:
    values = torch.tensor(
        [value for score in scores if (value := of(score)) is not None], dtype=torch.float64
    )
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return estimate_of(values[resampled(len(values))].mean(1))
