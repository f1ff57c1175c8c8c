"""Several bits of a latent: thresholds above its own, each with a decoder row.

How far a pre-activation is above its threshold says more of the hidden state than that it is. A
coder that has each latent several times, with rising thresholds, has that in codes of 0 and 1,
and is a binary coder like any other: every host and tool takes it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.measure.latent_choice import AnyCoder, with_latents
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# A threshold that no pre-activation exceeds; finite, for files of coders hold nothing else.
NEVER = math.exp(80)


def check_has_levels(name: str, coder: Any) -> None:
    """Raise ValueError where a coder's latents are not active by their own thresholds alone."""
    if not isinstance(coder, BinaryCoder):
        raise ValueError(
            f"{name}: its codes have values, of which a level would be a coarser one. Give binary "
            "coders."
        )
    if not coder.rule.kind.alone:
        raise ValueError(
            f"{name}: selection={coder.cfg.selection!r}, where latents compete, and more levels of "
            "one would shut out others. Give coders of selection 'threshold', such as those of the "
            "entropy loss."
        )


@torch.no_grad()
def level_thresholds(coder: BinaryCoder, inputs: Iterable[Tensor], levels: int) -> Tensor:
    """Thresholds of each latent, that divide the tokens it is active on evenly.

    Args:
        coder: a binary coder of selection threshold.
        inputs: hidden states [tokens, d_in], in batches.
        levels: thresholds a latent.

    Returns:
        [levels, d_sae], ascending in levels: the latent's own, and the quantiles 1/levels,
        2/levels, ... of its pre-activations above that. A latent never active has NEVER at its
        other levels.

    Raises:
        ValueError: as check_has_levels, or levels is no positive number.
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
    """Latents, and their pre-activations, of all ones of all tokens."""
    latents, values = [], []
    for x in inputs:
        codes, pre = coder.codes_and_pre_activations(x, noise=False)
        token, latent = codes.nonzero(as_tuple=True)
        latents.append(latent.cpu())
        values.append(pre[token, latent].cpu())
    return torch.cat(latents), torch.cat(values)


@torch.no_grad()
def with_levels(coder: AnyCoder, thresholds: Tensor) -> AnyCoder:
    """A coder of every latent with several thresholds, and the output of the old one.

    Args:
        coder: a binary coder of selection threshold.
        thresholds: [levels, d_sae], from level_thresholds.

    Returns:
        A coder of levels d_sae latents: first all at the first level, then all at the second.
        Decoder rows are those of before at the first level and 0 at the others: refit_decoder
        gives them what they are good for.
    """
    levels, latents = thresholds.shape
    leveled = with_latents(coder, torch.arange(latents).repeat(levels))
    leveled.log_threshold.copy_(thresholds.flatten().log())
    leveled.W_dec[latents:] = 0
    return leveled


def level_entropy(rates: Tensor) -> float:
    """Entropy of latents' levels, in bits, summed over latents.

    A latent's levels are nested, so that all are told by how many of them are active.

    Args:
        rates: float64 [levels, latents], at which each is active; descending in levels.
    """
    edges = torch.cat([torch.ones_like(rates[:1]), rates, torch.zeros_like(rates[:1])])
    # Two equal thresholds may differ in the last digit of what is compared with them.
    shares = (edges[:-1] - edges[1:]).clamp_min(0)
    return torch.special.entr(shares).sum().item() / math.log(2)
