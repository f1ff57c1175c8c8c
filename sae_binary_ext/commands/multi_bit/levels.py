"""Several bits for each latent: thresholds above its own, each with a decoder row.

How far a pre-activation exceeds its threshold holds more information than one bit. A coder that
has each latent several times, with rising thresholds, keeps some of it in codes of 0 and 1. It is a
binary coder like any other: every host and tool can use it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.measure.refit import AnyCoder, with_latents
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# A threshold that no pre-activation exceeds. It is finite because saved coders must be.
NEVER = math.exp(80)


def check_has_levels(name: str, coder: Any) -> None:
    """Raise ValueError if a coder's latents depend on more than their own thresholds."""
    if not isinstance(coder, BinaryCoder):
        raise ValueError(
            f"{name}: its codes have values already, and levels are for codes of 0 and 1. Give "
            "binary coders."
        )
    if not coder.rule.kind.alone:
        raise ValueError(
            f"{name}: selection={coder.cfg.selection!r} makes latents compete, so that levels of "
            "one latent would shut out others. Give coders of selection 'threshold', such as those "
            "trained with the entropy loss."
        )


@torch.no_grad()
def level_thresholds(coder: BinaryCoder, inputs: Iterable[Tensor], levels: int) -> Tensor:
    """Thresholds of each latent that divide the tokens where it is active evenly.

    Args:
        coder: a binary coder of selection threshold.
        inputs: hidden states [tokens, d_in], in batches.
        levels: thresholds per latent.

    Returns:
        [levels, d_sae], ascending in levels: the latent's own threshold, then the quantiles
        1/levels, 2/levels, ... of its pre-activations above it. A latent that is never active has
        NEVER at the other levels.

    Raises:
        ValueError: as check_has_levels, or levels is not positive.
    """
    check_has_levels("coder", coder)
    check_at_least(1, levels=levels)
    own = coder.log_threshold.exp()
    if levels == 1:
        return own[None]
    latents, values = _pre_activations_above(coder, inputs)
    order = values.argsort()
    order = order[latents[order].argsort(stable=True)]
    values = values[order]
    numbers = torch.bincount(latents, minlength=coder.cfg.d_sae)
    starts = numbers.cumsum(0) - numbers
    shares = torch.arange(1, levels)[:, None] / levels
    places = starts + (numbers * shares).long()
    above = torch.full(places.shape, NEVER)
    seen = numbers > 0
    above[:, seen] = values[places[:, seen]].to(above.dtype)
    return torch.cat([own[None], above.to(own)])


def _pre_activations_above(coder: BinaryCoder, inputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Latent and pre-activation of each active latent of each token."""
    latents, values = [], []
    for x in inputs:
        codes, pre = coder.codes_and_pre_activations(x, noise=False)
        token, latent = codes.nonzero(as_tuple=True)
        latents.append(latent.cpu())
        values.append(pre[token, latent].cpu())
    return torch.cat(latents), torch.cat(values)


@torch.no_grad()
def with_levels(coder: AnyCoder, thresholds: Tensor) -> AnyCoder:
    """A coder with several thresholds for each latent, and the same output as before.

    Args:
        coder: a binary coder of selection threshold.
        thresholds: [levels, d_sae], from level_thresholds.

    Returns:
        A coder with levels * d_sae latents, level by level. The first level keeps its decoder
        rows; the rows of the others are 0, for refit_decoder to fill.
    """
    levels, latents = thresholds.shape
    leveled = with_latents(coder, torch.arange(latents).repeat(levels))
    leveled.log_threshold.copy_(thresholds.flatten().log())
    leveled.W_dec[latents:] = 0
    return leveled


def level_entropy(rates: Tensor) -> float:
    """Entropy of the latents' levels, in bits, summed over latents.

    The levels of a latent are nested: the number of active levels says which ones are active.

    Args:
        rates: float64 [levels, latents], firing rates, descending in levels.
    """
    edges = torch.cat([torch.ones_like(rates[:1]), rates, torch.zeros_like(rates[:1])])
    # Rounding may make a level with an equal threshold fire a little more often: clamp at 0.
    shares = (edges[:-1] - edges[1:]).clamp_min(0)
    return torch.special.entr(shares).sum().item() / math.log(2)
