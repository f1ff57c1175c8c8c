"""The page of `sae-binary finetune`: its tables and plot."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_binary_ext.commands.finetune.config import FinetuneConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import Estimate, estimate_of
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.finetuning import RunningJoint, Step
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves
from sae_binary_ext.report.tables import table_of

# Names of the losses, in the order of RunningJoint.means.
LOSS_NAMES = ("clean", "spliced", "rise", "divergence")
CURVE_POINTS = 50


@dataclass(frozen=True)
class Finetuned:
    """Figures on held-out rows before and after, the training steps, and the new folders."""

    before: RunningJoint
    after: RunningJoint
    steps: list[Step]
    folders: list[Path]


@dataclass(frozen=True)
class JointLoss:
    """A loss with all coders spliced in, before and after, in nats, and its fall as a share."""

    name: str
    before: Estimate
    after: Estimate
    fall: Estimate


@dataclass(frozen=True)
class TunedCoder:
    """A coder with its figures on held-out rows before and after, and its new folder."""

    candidate: Candidate
    before: CoderFigures
    after: CoderFigures
    folder: Path


TOGETHER: tuple[Column[JointLoss], ...] = (
    Column("all coders spliced in", key="name"),
    Column("before", "Loss with the coders as they were, in nats.", ".4f", key="before"),
    Column("after", "Loss with the saved fine-tuned coders, in nats.", ".4f", key="after"),
    Column("fall", "Share by which the loss fell.", ".1%", key="fall"),
)


def _pair(label: str, form: str, key: str, figure: str) -> list[Column[TunedCoder]]:
    """Columns of a figure before and after."""
    return [
        Column(label, form=form, value=lambda c: getattr(c.before, figure), key=f"{key}_before"),
        Column("after", form=form, value=lambda c: getattr(c.after, figure), key=f"{key}_after"),
    ]


COLUMNS: tuple[Column[TunedCoder], ...] = (
    Column("coder", value=lambda c: c.candidate.name, key="name"),
    Column("at", value=lambda c: str(c.candidate.site), key="site"),
    *_pair("FVU", ".4f", "fvu", "fvu"),
    *_pair("L0", ".1f", "l0", "l0"),
    *_pair("bits", ".0f", "bits", "bits"),
    Column("dead", form="d", value=lambda c: int((c.before.rates == 0).sum()), key="dead_before"),
    Column("after", form="d", value=lambda c: int((c.after.rates == 0).sum()), key="dead_after"),
    Column("", value=lambda c: str(c.folder), key="folder"),
)


def finetune_page(found: Finetuned, config: FinetuneConfig) -> Analysis:
    """Make the page: its tables, plot and remarks."""
    losses = list(_losses(found))
    coders = [
        TunedCoder(candidate, before, after, folder)
        for candidate, before, after, folder in zip(
            found.before.opened.candidates,
            found.before.figures(),
            found.after.figures(),
            found.folders,
            strict=True,
        )
    ]
    results: dict[str, Any] = {
        "predictions": found.after.predictions,
        "losses": {each.name: vars(each) for each in losses},
        "training": [vars(step) for step in found.steps],
    }
    analysis = analysis_of(__file__, COLUMNS, coders, {"Training": _curves(found.steps)}, "coders")
    together = table_of(f"Held-out rows: {found.after.predictions:,} predictions", TOGETHER, losses)
    results |= analysis.results
    return replace(analysis, tables=[together, *analysis.tables], results=results)


def _losses(found: Finetuned) -> Iterator[JointLoss]:
    before, after = found.before.means(), found.after.means()
    for name, old, new in zip(LOSS_NAMES, before.T, after.T, strict=True):
        yield JointLoss(name, estimate_of(old), estimate_of(new), estimate_of(1 - new / old))


def _curves(steps: list[Step]) -> Any:
    size = -(-len(steps) // CURVE_POINTS)
    points: dict[str, list[tuple[int, float]]] = {"KL divergence": [], "rise of cross-entropy": []}
    for first in range(0, len(steps), size):
        part = steps[first : first + size]
        ends = part[-1].tokens
        points["KL divergence"].append((ends, sum(s.divergence for s in part) / len(part)))
        rise = sum(s.spliced - s.clean for s in part) / len(part)
        points["rise of cross-entropy"].append((ends, rise))
    return curves(points, "tokens trained on", "nats, mean of batches", mode="lines")
