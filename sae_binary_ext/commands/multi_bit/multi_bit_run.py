"""`sae-binary multi-bit`: coders with several bits for each latent."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from sae_binary_ext.commands.analysing import analyse_coders
from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
from sae_binary_ext.commands.multi_bit.levels import (
    check_has_levels,
    level_entropy,
    level_thresholds,
    with_levels,
)
from sae_binary_ext.commands.multi_bit.multi_bit_page import Leveled, multi_bit_page
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.measure.refit import refit_decoder
from sae_binary_ext.measure.text import Halves, figures_on, read_halves
from sae_binary_ext.report import Analysis


def run_multi_bit(coders: list[str], config: MultiBitConfig) -> Analysis:
    """Make coders of several levels and measure them; arguments and errors as analyse_coders.

    Raises:
        ValueError: also if a coder is not binary or not of selection threshold, or if the text is
            one document.
    """
    return analyse_coders(coders, config, _measure, multi_bit_page)


def _measure(opened: OpenedModel, config: MultiBitConfig) -> list[Leveled]:
    for candidate in opened.candidates:
        check_has_levels(candidate.name, candidate.coder)
    halves = read_halves(opened, config, dict.fromkeys(opened.hooks.values()))
    cases = [(each, levels) for each in opened.candidates for levels in config.levels]
    return [
        leveled(candidate, halves[opened.hooks[candidate.site]], levels, config.output / "coders")
        for candidate, levels in tqdm(cases, "Coders", unit="coders")
    ]


def leveled(candidate: Candidate, halves: Halves, levels: int, folder: Path) -> Leveled:
    """Make, refit, measure and write a coder of several levels.

    Args:
        candidate: a binary coder of selection threshold.
        halves: activations at its hooks.
        levels: thresholds per latent.
        folder: gets a folder with the new coder.
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
