"""The page of `sae-binary multi-bit`: its columns, remarks and plot."""

from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import curves, grouped

REMARKS = (
    "Each latent gets several thresholds: its own, and quantiles of its pre-activation on the "
    "tokens where it is active. Each level has its own decoder row. All rows are those of least "
    "squared error on every other document, and figures are of the documents in between. One level "
    "is the coder with its decoder refitted.",
    "Bits are the entropy of the number of active levels of each latent, summed over latents. "
    "Levels are nested, so other commands, which count levels as independent latents, show too "
    "many bits for such a coder. More bits per latent pay off if a coder of single bits has a "
    "higher FVU at the same number of bits: compare coders trained at several prices of a bit. "
    "docs/reconstruction.md has that comparison for SmolLM2.",
    "The new coders are in the folder coders. They are binary coders with levels times as many "
    "latents. Brackets: 95% of bootstrap replicates over documents.",
)


@dataclass(frozen=True)
class Leveled:
    """A coder with several levels.

    Attributes:
        candidate: the coder that it was made from.
        levels: thresholds per latent.
        figures: with its decoder refitted.
        bits: entropy of the latents' levels, per token.
        folder: where it is.
    """

    candidate: Candidate
    levels: int
    figures: CoderFigures
    bits: float
    folder: Path


COLUMNS: tuple[Column[Leveled], ...] = (
    Column("coder", value=lambda c: c.candidate.name, key="name"),
    Column("levels", "Thresholds per latent.", "d", key="levels"),
    Column(
        "latents",
        "Width of the new coder, all levels.",
        "d",
        lambda c: c.figures.latents,
        "latents",
    ),
    Column("", value=lambda c: c.figures.tokens, key="tokens"),
    Column("L0", "Mean active latents per token, all levels.", ".1f", lambda c: c.figures.l0, "l0"),
    Column("bits", "Entropy of the latents' levels, in bits per token.", ".1f", key="bits"),
    Column("", value=lambda c: c.figures.entropy_bits, key="independent_bits"),
    Column("FVU", "Squared error over total variance.", ".4f", lambda c: c.figures.fvu, "fvu"),
    Column("", value=lambda c: c.folder.name, key="folder"),
)


def multi_bit_page(found: list[Leveled], config: MultiBitConfig) -> Analysis:
    """Table, plot and remarks."""
    return Analysis(
        "multi-bit",
        "Several bits of a latent",
        REMARKS,
        [table_of("By levels", COLUMNS, found)],
        {"FVU by bits": _by_bits(found)},
        {"coders": described(COLUMNS, found)},
    )


def _by_bits(found: list[Leveled]) -> go.Figure:
    points = {
        name: [(each.bits, each.figures.fvu.value, f"{each.levels} levels") for each in own]
        for name, own in grouped(found, lambda each: each.candidate.name).items()
    }
    return curves(points, "bits a token", "FVU")
