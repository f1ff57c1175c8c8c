"""`sae-binary multi-bit`: makes coders with several bits for each latent.

The distance of a pre-activation from its threshold holds more than one bit. A coder that repeats
each latent with rising thresholds keeps some of these bits in codes of 0 and 1.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
from sae_binary_ext.commands.multi_bit.multi_bit_page import Leveled, multi_bit_page
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.measure.refit import AnyCoder, with_latents
from sae_binary_ext.measure.text import figures_on, read_halves
from sae_binary_ext.report import Analysis
from sae_binary_ext.report.analysis import analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder
from sae_binary_ext.saelens.refitting import refit_decoder

# A threshold that no pre-activation exceeds. The threshold is finite, because saved coders must
# have finite values.
NEVER = math.exp(80)


def run_multi_bit(coders: list[str], config: MultiBitConfig) -> Analysis:
    """Make coders of several levels and measure them; arguments and errors as for analyse_coders.

    Also ValueError if a coder has no thresholds of its own, or if the text is only one document.
    """
    return analyse_coders(coders, config, _measure, multi_bit_page)


def _measure(opened: OpenedModel, config: MultiBitConfig) -> list[Leveled]:
    for candidate in opened.candidates:
        check_has_levels(candidate.name, candidate.coder)
    halves = read_halves(opened, config, opened.hooks.values())
    found: list[Leveled] = []
    cases = [(each, levels) for each in opened.candidates for levels in config.levels]
    for candidate, levels in tqdm(cases, "Coders", unit="coders"):
        coder: Any = candidate.coder
        own, device = halves[opened.hooks[candidate.site]], coder.W_dec.device
        thresholds = level_thresholds(coder, (x for x, _ in own.to_fit(device)), levels)
        wide = with_levels(coder, thresholds)
        refit_decoder(wide, own.to_fit(device))
        folder = config.output / "coders" / f"{candidate.name.replace('/', '_')}-levels{levels}"
        wide.save_model(folder)
        figures = figures_on(wide, own.measured)
        bits = level_entropy(figures.rates.reshape(levels, -1))
        found.append(Leveled(candidate, levels, figures, bits, folder))
    return found


def check_has_levels(name: str, coder: Any) -> None:
    """Raise ValueError if a coder's latents depend on more than their own thresholds."""
    if not isinstance(coder, BinaryCoder):
        raise ValueError(f"{name}: its codes have values; levels need 0 and 1. Give binary coders.")
    if not coder.rule.kind.alone:
        raise ValueError(
            f"{name}: with selection={coder.cfg.selection!r}, the levels of one latent would shut "
            "out other latents. Give coders of selection 'threshold'."
        )


@torch.no_grad()
def level_thresholds(coder: BinaryCoder, inputs: Iterable[Tensor], levels: int) -> Tensor:
    """Thresholds that divide the tokens on which a latent is active into equal parts.

    `inputs` are batches of hidden states [tokens, d_in]. Returns [levels, d_sae]: a latent's own
    threshold, then the quantiles 1/levels, 2/levels, ... of its pre-activations above it, or NEVER
    if the latent is never active. ValueError if check_has_levels refuses the coder, or levels < 1.
    """
    check_has_levels("coder", coder)
    check_at_least(1, levels=levels)
    own = coder.log_threshold.exp()
    if levels == 1:
        return own[None]
    found: list[tuple[Tensor, Tensor]] = []
    for x in inputs:
        codes, pre = coder.codes_and_pre_activations(x, noise=False)
        active = codes != 0
        found.append((active.nonzero()[:, 1].cpu(), pre[active].cpu()))
    latents, values = map(torch.cat, zip(*found, strict=True))
    order = values.argsort()
    values = values[order[latents[order].argsort(stable=True)]]
    numbers = torch.bincount(latents, minlength=coder.cfg.d_sae)
    starts = numbers.cumsum(0) - numbers
    places = starts + (numbers * torch.arange(1, levels)[:, None] / levels).long()
    above = torch.full(places.shape, NEVER)
    seen = numbers > 0
    above[:, seen] = values[places[:, seen]].to(above.dtype)
    return torch.cat([own[None], above.to(own)])


@torch.no_grad()
def with_levels(coder: AnyCoder, thresholds: Tensor) -> AnyCoder:
    """A coder with several thresholds for each latent, and the same output as `coder`.

    The new coder has levels * d_sae latents, level by level. The first level keeps its decoder
    rows. Rows of other levels are 0, until refit_decoder fills them. `thresholds` come from
    level_thresholds.
    """
    levels, latents = thresholds.shape
    leveled = with_latents(coder, torch.arange(latents).repeat(levels))
    leveled.log_threshold.copy_(thresholds.flatten().log())
    leveled.W_dec[latents:] = 0
    return leveled


def level_entropy(rates: Tensor) -> float:
    """Entropy of the latents' levels, in bits, summed over latents.

    The levels of a latent are nested, so the number of active levels says which are active.
    `rates`, float64 [levels, latents], are firing rates, which fall from level to level.
    """
    edges = torch.cat([torch.ones_like(rates[:1]), rates, torch.zeros_like(rates[:1])])
    # Clamp at 0, because rounding may let a level fire more often than the one below it.
    shares = (edges[:-1] - edges[1:]).clamp_min(0)
    return torch.special.entr(shares).sum().item() / math.log(2)
