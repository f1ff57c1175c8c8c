"""The page of `sae-binary multi-bit`: its table and plot."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped


@dataclass(frozen=True)
class Leveled:
    """A coder of several levels, made from `candidate`: its refitted figures, bits and folder."""

    candidate: Candidate
    levels: int
    figures: CoderFigures
    bits: float
    folder: Path


COLUMNS: tuple[Column[Leveled], ...] = (
    Column("coder", value=lambda c: c.candidate.name, key="name"),
    Column("levels", form="d", key="levels"),
    Column("latents", form="d", value=lambda c: c.figures.latents, key="latents"),
    Column("", value=lambda c: c.figures.tokens, key="tokens"),
    Column("L0", form=".1f", value=lambda c: c.figures.l0, key="l0"),
    Column("bits", form=".1f", key="bits"),
    Column("", value=lambda c: c.figures.entropy_bits, key="independent_bits"),
    Column("FVU", form=".4f", value=lambda c: c.figures.fvu, key="fvu"),
    Column("", value=lambda c: c.folder.name, key="folder"),
)


def multi_bit_page(found: list[Leveled], config: MultiBitConfig) -> Analysis:
    """Make the page: its table, plot and remarks."""
    points = {
        name: [(each.bits, each.figures.fvu.value, f"{each.levels} levels") for each in own]
        for name, own in grouped(found, lambda each: each.candidate.name).items()
    }
    plots = {"FVU by bits": curves(points, "bits a token", "FVU")}
    return analysis_of(__file__, COLUMNS, found, plots, "coders")
