"""The page of `sae-binary transfer`: what it shows of each result."""

from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from sae_binary_ext.commands.transfer.config import TransferConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import curves, grouped


@dataclass(frozen=True)
class Transferred:
    """A coder at a layer: figures of the unchanged coder, FVU after each change, and shift in bits.

    scaled_fvu is None for transcoders, refitted_fvu for coders with values.
    """

    candidate: Candidate
    layer: int
    at_home: bool
    figures: CoderFigures
    scaled_fvu: Estimate | None
    refitted_fvu: Estimate | None
    shift: float

    @property
    def fvu(self) -> Estimate:
        """FVU with the coder unchanged."""
        return self.figures.fvu


TEXTS = Path(__file__).with_name("page.toml")
COLUMNS: tuple[Column[Transferred], ...] = (
    Column("coder", value=lambda t: t.candidate.name, key="name"),
    Column("layer", value=lambda t: f"{t.layer}{' *' * t.at_home}"),
    Column("", key="layer"),
    Column("", key="at_home"),
    Column("", value=lambda t: t.figures.tokens, key="tokens"),
    Column("FVU", form=".3f", key="fvu"),
    Column("scaled", form=".3f", key="scaled_fvu"),
    Column("refitted", form=".3f", key="refitted_fvu"),
    Column("L0", form=".1f", value=lambda t: t.figures.l0, key="l0"),
    Column("dead", form="d", value=lambda t: int((t.figures.rates == 0).sum()), key="dead"),
    Column("entropy", form=".1f", value=lambda t: t.figures.entropy_bits, key="entropy_bits"),
    Column("shift", form=".2f", value=lambda t: t.shift, key="shift_bits"),
)


def transfer_page(found: list[Transferred], config: TransferConfig) -> Analysis:
    """Table, plots and remarks."""
    return analysis_of(
        TEXTS,
        COLUMNS,
        found,
        {"FVU": _fvu(found), "Shift of the firing rates": _shifts(found)},
        {"coders": described(COLUMNS, found)},
    )


def _fvu(found: list[Transferred]) -> go.Figure:
    kinds = {"unchanged": "fvu", "scaled": "scaled_fvu", "refitted": "refitted_fvu"}
    points: dict[str, list[tuple[int, float | None]]] = {}
    for name, own in grouped(found, lambda each: each.candidate.name).items():
        for kind, attribute in kinds.items():
            estimates: list[Estimate | None] = [getattr(each, attribute) for each in own]
            points[f"{name}, {kind}"] = [
                (each.layer, fvu and fvu.value) for each, fvu in zip(own, estimates, strict=True)
            ]
    return curves(points, "layer", "FVU").update_yaxes(type="log", dtick="D2")


def _shifts(found: list[Transferred]) -> go.Figure:
    by_coder = grouped(found, lambda each: each.candidate.name)
    points = {name: [(each.layer, each.shift) for each in own] for name, own in by_coder.items()}
    return curves(points, "layer", "bits a token").update_yaxes(rangemode="tozero")
