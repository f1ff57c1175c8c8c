"""The page of `sae-binary gradients`: what it shows of each result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.gradients.config import GradientsConfig
from sae_binary_ext.commands.gradients.gradient_probe import Agreement, GradientFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped

# The table and the curves over training show bumps of a tenth of a pre-activation's standard
# deviation, and steps that promise 1% of the loss.
SHOWN_BUMP, SHOWN_PROMISE = 0.1, 0.01


@dataclass(frozen=True)
class Probe:
    """Figures of a surrogate's gradients after some steps of training."""

    surrogate: str
    step: int
    figures: GradientFigures

    @property
    def bumped(self) -> Agreement:
        """The agreement for bumps of the size that is shown."""
        return next(each for each in self.figures.agreements if each.bump == SHOWN_BUMP)


TEXTS = Path(__file__).with_name("page.toml")
COLUMNS: tuple[Column[Probe], ...] = (
    Column("surrogate", key="surrogate"),
    Column("step", form="d", key="step"),
    Column("FVU", form=".3f", value=lambda p: p.figures.fvu),
    Column("with gradient", form=".1%", value=lambda p: p.figures.latents),
    Column("norm", form=".3g", value=lambda p: p.figures.weight_norm),
    Column("moved", form=".1%", value=lambda p: p.bumped.moved),
    Column("cosine", form=".2f", value=lambda p: p.bumped.cosine),
    Column("signs", form=".2f", value=lambda p: p.bumped.signs),
    Column("kept", form=".2f", value=lambda p: p.figures.kept[SHOWN_PROMISE]),
)


def gradients_page(probes: list[Probe], config: GradientsConfig) -> Analysis:
    """Table, plots and remarks."""
    return analysis_of(
        TEXTS,
        COLUMNS,
        probes,
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
