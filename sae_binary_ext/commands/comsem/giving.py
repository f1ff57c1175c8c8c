"""Which tokens are given to which latents, and some of each latent's in their text."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding import burstiness
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.samples import CONTEXT_RADIUS, SEED, PlaceSamples, draw_latents
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# A latent that never varies stands out on nothing.
SMALLEST_DEVIATION = 1e-6


def prominence(coder: Any, codes: Tensor, running: RunningLatents) -> Tensor:
    """How much each latent stands out on each token.

    Of binary coders burstiness, log2 |h - mean of h|: a 0 of a latent that is nearly always active
    stands out as a 1 of a rare one does. Of others the value in standard deviations from its mean,
    which is how the paper rescales SAEs to compare them.

    Args:
        coder: whose codes they are.
        codes: float32 [tokens, latents].
        running: what they were over the whole text.

    Returns:
        float32 [tokens, latents].
    """
    if isinstance(coder, BinaryCoder):
        return burstiness(codes, running.rates.float())
    deviations = running.deviations.float()
    varied = (codes - running.means.float()) / deviations.clamp_min(SMALLEST_DEVIATION)
    return torch.where(deviations > SMALLEST_DEVIATION, varied, -torch.inf)


def give(scores: Tensor, number: int) -> Tensor:
    """To which latents each token is given: those of the highest scores.

    Latents of equal scores, of which binary ones of equal rates have nothing else, come in one
    random order.

    Args:
        scores: [tokens, latents]; -inf for latents that take no token.
        number: how many latents a token is given to.

    Returns:
        bool [tokens, latents].
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(scores.shape[1], generator=generator)
    found = scores[:, order].topk(min(number, scores.shape[1]), dim=1)
    given = torch.zeros_like(scores, dtype=torch.bool)
    return given.scatter_(1, order[found.indices], found.values > -torch.inf)


@dataclass(frozen=True)
class LatentTokens:
    """One latent's tokens in their text.

    Attributes:
        latent: its number.
        given: how many tokens of the text were given to it.
        absent: share of these on which it is silent.
        own: int64 [at most most, window], some of them at random, -1 beyond a row's ends.
        others: likewise, tokens that were not given to it.
    """

    latent: int
    given: int
    absent: float
    own: Tensor
    others: Tensor


class GivenTokens:
    """Of some latents of a coder the tokens that are given to them, from a stream.

    Args:
        width: latents of the coder.
        count: how many of them to follow, drawn at random.
        most: tokens of each to keep.
    """

    def __init__(self, width: int, count: int, most: int) -> None:
        self.latents = draw_latents(width, count)
        self._own = PlaceSamples(len(self.latents), most, CONTEXT_RADIUS)
        self._others = PlaceSamples(len(self.latents), most, CONTEXT_RADIUS)
        self._given = torch.zeros(len(self.latents), dtype=torch.long)
        self._absent = torch.zeros(len(self.latents), dtype=torch.long)

    def add(self, text: TextBatch, where: Tensor, codes: Tensor, given: Tensor) -> None:
        """Count and sample one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that count.
            codes: float32 [positions that count, latents], row by row.
            given: bool likewise, from give.
        """
        codes, given = codes[:, self.latents], given[:, self.latents]
        self._given += given.sum(0)
        self._absent += (given & (codes == 0)).sum(0)
        self._own.add(text, where, given, codes)
        self._others.add(text, where, ~given, codes)

    def tokens_of(self, place: int) -> LatentTokens:
        """One latent's, by its place among those followed."""
        given = int(self._given[place])
        return LatentTokens(
            int(self.latents[place]),
            given,
            int(self._absent[place]) / given if given else 0.0,
            self._own.tokens[place][self._own.there[place]],
            self._others.tokens[place][self._others.there[place]],
        )
