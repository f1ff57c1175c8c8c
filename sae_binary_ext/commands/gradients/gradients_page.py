"""The page of `sae-binary gradients`: its columns, remarks and plots."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.gradients.config import GradientsConfig
from sae_binary_ext.commands.gradients.gradient_probe import Agreement, GradientFigures
from sae_binary_ext.report import Analysis, Column, table_of
from sae_binary_ext.report.plots import curves, grouped

# The table and the curves over training show bumps of a tenth of a pre-activation's standard
# deviation, and steps that promise 1% of the loss.
SHOWN_BUMP, SHOWN_PROMISE = 0.1, 0.01
REMARKS = (
    "The loss of a binary coder is a staircase in its encoder: its derivative is 0 wherever it "
    "exists, and a surrogate replaces it. One coder was trained with each surrogate, on the same "
    "activations in the same order. At some steps, its surrogate gradient was computed on a batch "
    "that it is not trained on, and compared with the true loss there: the bias of one latent was "
    "raised and lowered by a share of its pre-activation's standard deviation, and the codes were "
    "selected anew. Cosine and signs are over latents drawn from those that fire on the batch.",
    "Kept: the whole encoder is moved against its gradient, by a step that should lower the loss "
    "by 1% if the gradient were right. 1 means that the loss falls that far, 0 that nothing "
    "changes, below 0 that the loss rises. Do not compare the norms of different surrogates: Adam "
    "removes the scale.",
    "A low agreement does not mean that training fails: errors of single latents may cancel over "
    "many steps, and Adam's steps are not the gradient's. The gradient is that of the squared "
    "error alone, on this batch, for this width, selection and temperature. With topk, latents "
    "that are close to firing learn too (surrogate_latents, see the README).",
    "Brackets: 95% of bootstrap replicates over latents.",
)


@dataclass(frozen=True)
class Probe:
    """Gradients at one step of training.

    Attributes:
        surrogate: with which the coder was trained.
        step: number of steps done.
        figures: of the gradients.
    """

    surrogate: str
    step: int
    figures: GradientFigures

    @property
    def bumped(self) -> Agreement:
        """The agreement for bumps of the size that is shown."""
        return next(each for each in self.figures.agreements if each.bump == SHOWN_BUMP)


COLUMNS: tuple[Column[Probe], ...] = (
    Column("surrogate", key="surrogate"),
    Column("step", "Step of training.", "d", key="step"),
    Column(
        "FVU", "Squared error over total variance of the batch.", ".3f", lambda p: p.figures.fvu
    ),
    Column(
        "with gradient",
        "Share of all latents whose bias has a gradient.",
        ".1%",
        lambda p: p.figures.latents,
    ),
    Column(
        "norm", "Norm of the encoder weights' gradient.", ".3g", lambda p: p.figures.weight_norm
    ),
    Column(
        "moved",
        "Share of the bumped latents whose bump changes the loss.",
        ".1%",
        lambda p: p.bumped.moved,
    ),
    Column(
        "cosine",
        "Cosine of the surrogate gradients with the changes of the loss.",
        ".2f",
        lambda p: p.bumped.cosine,
    ),
    Column(
        "signs",
        "Share of latents for which both have the same sign.",
        ".2f",
        lambda p: p.bumped.signs,
    ),
    Column(
        "kept",
        "Fall of the loss over the fall that a step promises, for a promise of 1% of the loss.",
        ".2f",
        lambda p: p.figures.kept[SHOWN_PROMISE],
    ),
)


def gradients_page(probes: list[Probe], config: GradientsConfig) -> Analysis:
    """Table, plots and remarks."""
    return Analysis(
        "gradients",
        "Surrogate gradients and the true loss",
        REMARKS,
        [table_of("Over training", COLUMNS, probes)],
        {
            "Cosine over training": _over_training(probes, lambda p: p.bumped.cosine.value),
            "Latents with a gradient": _over_training(probes, lambda p: p.figures.latents),
            "Kept of a step's promise": _over_training(
                probes, lambda p: p.figures.kept[SHOWN_PROMISE]
            ),
            "Cosine by size of the step": _by_bump(probes),
        },
        {"probes": [_described(probe) for probe in probes]},
    )


def _described(probe: Probe) -> dict[str, Any]:
    figures = vars(probe.figures) | {"agreements": [vars(a) for a in probe.figures.agreements]}
    return {"surrogate": probe.surrogate, "step": probe.step} | figures


def _over_training(probes: list[Probe], value: Callable[[Probe], float]) -> go.Figure:
    points = {
        surrogate: [(probe.step, value(probe)) for probe in own]
        for surrogate, own in grouped(probes, lambda probe: probe.surrogate).items()
    }
    return curves(points, "training step", "").update_xaxes(type="log")


def _by_bump(probes: list[Probe]) -> go.Figure:
    """Cosines at the last step."""
    points = {
        probe.surrogate: [(each.bump, each.cosine) for each in probe.figures.agreements]
        for probe in probes  # the last one of each surrogate stays
    }
    title = "step, in standard deviations of the pre-activation"
    return curves(points, title, "cosine").update_xaxes(type="log")
