"""`sae-binary multi-bit`: several bits of each latent, and what they are good for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from tqdm import tqdm

from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
from sae_binary_ext.commands.multi_bit.levels import (
    check_has_levels,
    level_entropy,
    level_thresholds,
    with_levels,
)
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.halves import Halves, figures_on, read_halves
from sae_binary_ext.measure.reading import open_coders, settings_of
from sae_binary_ext.measure.refit import refit_decoder
from sae_binary_ext.report.analysis import Analysis, Column, Table, Value, write_analysis

REMARKS = (
    "Each latent with several thresholds: its own, and quantiles of its pre-activation on the "
    "tokens where it is active. Every level has a decoder row of its own, and all rows are those "
    "of least squared error on every other document; figures are of the documents in between. "
    "One level is the coder with its decoder refitted.",
    "Bits are the entropy of each latent's number of levels, summed over latents: levels are "
    "nested, and counting them as independent latents, as other commands do of such a coder, is "
    "too high. More bits a latent are worth it where another coder of single bits has a higher FVU "
    "at as many bits: compare coders trained at several prices of a bit. docs/reconstruction.md "
    "has that comparison for SmolLM2.",
    "The coders are in the folder coders, as binary coders of so many times the latents. Brackets: "
    "95% of bootstrap replicates over documents.",
)
COLUMNS = (
    Column("coder"),
    Column("levels", "Thresholds a latent.", "d"),
    Column("latents", "Of the coder written, all levels.", "d"),
    Column("L0", "Mean active latents a token, all levels.", ".1f"),
    Column("bits", "Entropy of the latents' levels, bits a token.", ".1f"),
    Column("FVU", "Squared error over total variance.", ".4f"),
)


@dataclass(frozen=True)
class Leveled:
    """A coder with so many levels.

    Attributes:
        candidate: the coder it was made of.
        levels: thresholds a latent.
        figures: with its decoder refitted.
        bits: entropy of the latents' levels, a token.
        folder: where it is.
    """

    candidate: Candidate
    levels: int
    figures: CoderFigures
    bits: float
    folder: Path


def run_multi_bit(coders: list[str], config: MultiBitConfig) -> Analysis:
    """Make coders of several levels and measure them; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: a coder is not binary, or not of selection threshold; or the text is of one
            document.
    """
    opened = open_coders(coders, config, config.output)
    for candidate in opened.candidates:
        check_has_levels(candidate.name, candidate.coder)
    halves = read_halves(opened, config, dict.fromkeys(opened.hooks.values()))
    found = [
        leveled(candidate, halves[opened.hooks[candidate.site]], levels, config.output / "coders")
        for candidate, levels in tqdm(
            [(each, levels) for each in opened.candidates for levels in config.levels],
            "Coders",
            unit="coders",
        )
    ]
    analysis = Analysis(
        "multi-bit",
        "Several bits of a latent",
        REMARKS,
        [Table("By levels", COLUMNS, [_row(each) for each in found])],
        {"FVU by bits": _by_bits(found)},
        {"coders": [_described(each) for each in found]},
    )
    write_analysis(analysis, settings_of(opened, config), config.output)
    return analysis


def leveled(candidate: Candidate, halves: Halves, levels: int, folder: Path) -> Leveled:
    """Make, refit, measure and write a coder of several levels.

    Args:
        candidate: the coder; binary, of selection threshold.
        halves: activations where it belongs.
        levels: thresholds a latent.
        folder: where it is written, in one of its own.
    """
    coder: Any = candidate.coder
    device = coder.W_dec.device
    thresholds = level_thresholds(coder, (x for x, _ in halves.to_fit(device)), levels)
    wide = with_levels(coder, thresholds)
    refit_decoder(wide, halves.to_fit(device))
    figures = figures_on(wide, halves.measured)
    own = folder / f"{candidate.name.replace('/', '_')}-levels{levels}"
    wide.save_model(own)
    bits = level_entropy(figures.rates.reshape(levels, -1))
    return Leveled(candidate, levels, figures, bits, own)


def _row(found: Leveled) -> list[Value]:
    figures = found.figures
    return [
        found.candidate.name,
        found.levels,
        figures.latents,
        figures.l0,
        found.bits,
        figures.fvu,
    ]


def _described(found: Leveled) -> dict[str, Any]:
    figures = found.figures
    return {
        "name": found.candidate.name,
        "levels": found.levels,
        "latents": figures.latents,
        "tokens": figures.tokens,
        "l0": figures.l0,
        "bits": found.bits,
        "independent_bits": figures.entropy_bits,
        "fvu": figures.fvu,
        "folder": found.folder.name,
    }


def _by_bits(found: list[Leveled]) -> go.Figure:
    figure = go.Figure()
    for name in dict.fromkeys(each.candidate.name for each in found):
        own = [each for each in found if each.candidate.name == name]
        figure.add_scatter(
            x=[each.bits for each in own],
            y=[each.figures.fvu.value for each in own],
            text=[f"{each.levels} levels" for each in own],
            mode="lines+markers",
            name=name,
        )
    figure.update_xaxes(title="bits a token")
    figure.update_yaxes(title="FVU")
    return figure
