"""The page of `sae-binary gradients`: its table and plots."""

from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.gradients.config import GradientsConfig
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped

# The table and the curves over training show bumps of a tenth of a pre-activation's standard
# deviation, and steps that promise 1% of the loss.
SHOWN_BUMP, SHOWN_PROMISE = 0.1, 0.01


@dataclass(frozen=True)
class Agreement:
    """Compares a surrogate's gradients of encoder biases with changes of the loss.

    Each bias of a probed latent is raised and lowered by one bump. moved: share of latents for
    which this changes the loss. cosine: cosine of the gradients with the changes per unit of bump.
    signs: share of latents for which both have the same sign, among those for which neither is 0.
    """

    moved: float
    cosine: Estimate
    signs: Estimate


@dataclass(frozen=True)
class GradientFigures:
    """A coder's surrogate gradient on a batch. The loss is the mean squared error per token.

    latents: share of latents whose bias has a gradient. weight_norm, bias_norm: norms of the
    gradients of W_enc and b_enc. agreements: one for each size of bump, in standard deviations of a
    latent's pre-activation. kept: for each promised fall (as a share of the loss), the actual fall
    over the promised one.
    """

    fvu: float
    latents: float
    weight_norm: float
    bias_norm: float
    agreements: dict[float, Agreement]
    kept: dict[float, float]


@dataclass(frozen=True)
class Probe:
    """Figures of a surrogate's gradients after some steps of training."""

    surrogate: str
    step: int
    figures: GradientFigures


COLUMNS: tuple[Column[Probe], ...] = (
    Column("surrogate", key="surrogate"),
    Column("step", form="d", key="step"),
    Column("FVU", form=".3f", value=lambda p: p.figures.fvu),
    Column("with gradient", form=".1%", value=lambda p: p.figures.latents),
    Column("norm", form=".3g", value=lambda p: p.figures.weight_norm),
    Column("moved", form=".1%", value=lambda p: p.figures.agreements[SHOWN_BUMP].moved),
    Column("cosine", form=".2f", value=lambda p: p.figures.agreements[SHOWN_BUMP].cosine),
    Column("signs", form=".2f", value=lambda p: p.figures.agreements[SHOWN_BUMP].signs),
    Column("kept", form=".2f", value=lambda p: p.figures.kept[SHOWN_PROMISE]),
)


def gradients_page(probes: list[Probe], config: GradientsConfig) -> Analysis:
    """Make the page: its table, plots and remarks."""
    by_surrogate = grouped(probes, lambda probe: probe.surrogate)

    def over_training(value: Callable[[Probe], float]) -> go.Figure:
        points = {
            surrogate: [(probe.step, value(probe)) for probe in own]
            for surrogate, own in by_surrogate.items()
        }
        return curves(points, "training step", "").update_xaxes(type="log")

    at_the_end = {
        surrogate: [(bump, each.cosine) for bump, each in own[-1].figures.agreements.items()]
        for surrogate, own in by_surrogate.items()
    }
    bumps = "step, in standard deviations of the pre-activation"
    plots = {
        "Cosine over training": over_training(
            lambda p: p.figures.agreements[SHOWN_BUMP].cosine.value
        ),
        "Latents with a gradient": over_training(lambda p: p.figures.latents),
        "Kept of a step's promise": over_training(lambda p: p.figures.kept[SHOWN_PROMISE]),
        "Cosine by size of the step": curves(at_the_end, bumps, "cosine").update_xaxes(type="log"),
    }
    results = [
        {"surrogate": probe.surrogate, "step": probe.step}
        | vars(probe.figures)
        | {"agreements": [{"bump": b} | vars(a) for b, a in probe.figures.agreements.items()]}
        for probe in probes
    ]
    return analysis_of(__file__, COLUMNS, probes, plots, {"probes": results})
