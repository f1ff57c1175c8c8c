"""The page of `sae-binary transfer`: its table and plots."""

from dataclasses import dataclass

from sae_binary_ext.commands.transfer.config import TransferConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped


@dataclass(frozen=True)
class Transferred:
    """A coder applied to a layer: figures if unchanged, FVU after each change, and firing shift.

    scaled_fvu is None for transcoders; refitted_fvu is None for coders with values. `shift` is in
    bits.
    """

    candidate: Candidate
    layer: int
    at_home: bool
    figures: CoderFigures
    scaled_fvu: Estimate | None
    refitted_fvu: Estimate | None
    shift: float


KINDS = ("unchanged", "scaled", "refitted")
COLUMNS: tuple[Column[Transferred], ...] = (
    Column("coder", value=lambda t: t.candidate.name, key="name"),
    Column("layer", value=lambda t: f"{t.layer}{' *' * t.at_home}"),
    Column("", key="layer"),
    Column("", key="at_home"),
    Column("", value=lambda t: t.figures.tokens, key="tokens"),
    Column("FVU", form=".3f", value=lambda t: t.figures.fvu, key="fvu"),
    Column("scaled", form=".3f", key="scaled_fvu"),
    Column("refitted", form=".3f", key="refitted_fvu"),
    Column("L0", form=".1f", value=lambda t: t.figures.l0, key="l0"),
    Column("dead", form="d", value=lambda t: int((t.figures.rates == 0).sum()), key="dead"),
    Column("entropy", form=".1f", value=lambda t: t.figures.entropy_bits, key="entropy_bits"),
    Column("shift", form=".2f", value=lambda t: t.shift, key="shift_bits"),
)


def transfer_page(found: list[Transferred], config: TransferConfig) -> Analysis:
    """Make the page: its table, plots and remarks."""
    errors: dict[str, list[tuple[int, float | None]]] = {}
    shifts: dict[str, list[tuple[int, float]]] = {}
    for name, own in grouped(found, lambda each: each.candidate.name).items():
        shifts[name] = [(each.layer, each.shift) for each in own]
        for each in own:
            found_fvu = (each.figures.fvu, each.scaled_fvu, each.refitted_fvu)
            for kind, estimate in zip(KINDS, found_fvu, strict=True):
                point = (each.layer, estimate and estimate.value)
                errors.setdefault(f"{name}, {kind}", []).append(point)
    fvu = curves(errors, "layer", "FVU").update_yaxes(type="log", dtick="D2")
    shift = curves(shifts, "layer", "bits a token").update_yaxes(rangemode="tozero")
    plots = {"FVU": fvu, "Shift of the firing rates": shift}
    return analysis_of(__file__, COLUMNS, found, plots, "coders")
