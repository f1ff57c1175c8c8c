"""Gives tokens to latents, and keeps some tokens of each latent with their text."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding import burstiness
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.samples import CONTEXT_RADIUS, SEED, PlaceSamples, draw_latents
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# A latent gets no tokens if the standard deviation of its code is smaller than this.
SMALLEST_DEVIATION = 1e-6


def prominence(coder: Any, codes: Tensor, running: RunningLatents) -> Tensor:
    """How much each latent stands out on each token; float32 [tokens, latents], the shape of codes.

    For binary coders this is burstiness, log2 |h - mean of h|. A 0 of a latent that is nearly
    always active stands out as much as a 1 of a rare latent. For other coders it is the distance of
    the value from its mean, in standard deviations. The paper rescales SAEs in this way to compare
    them. Means and deviations are for the whole text.
    """
    if isinstance(coder, BinaryCoder):
        return burstiness(codes, running.rates.float())
    deviations = running.deviations.float()
    varied = (codes - running.means.float()) / deviations.clamp_min(SMALLEST_DEVIATION)
    return torch.where(deviations > SMALLEST_DEVIATION, varied, -torch.inf)


def give(scores: Tensor, number: int) -> Tensor:
    """Give each token to the `number` latents with the highest scores.

    Ties are broken by one random order of the latents. Binary latents of equal rates always tie.
    Scores are [tokens, latents]; -inf means that a latent cannot take the token. Returns bool
    [tokens, latents].
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(scores.shape[1], generator=generator)
    found = scores[:, order].topk(min(number, scores.shape[1]), dim=1)
    given = torch.zeros_like(scores, dtype=torch.bool)
    return given.scatter_(1, order[found.indices], found.values > -torch.inf)


@dataclass(frozen=True)
class LatentTokens:
    """Tokens given to one latent: their number, and the share of them on which it is silent.

    `own`, int64 [samples, window], has some given tokens, drawn at random, with their neighbours;
    -1 is beyond the ends of a row. `others` has the same for tokens not given to the latent.
    """

    latent: int
    given: int
    absent: float
    own: Tensor
    others: Tensor


class GivenTokens:
    """Counts tokens given to `count` random latents of a coder; keeps `most` tokens of each."""

    def __init__(self, width: int, count: int, most: int) -> None:
        self.latents = draw_latents(width, count)
        self._own = PlaceSamples(len(self.latents), most, CONTEXT_RADIUS)
        self._others = PlaceSamples(len(self.latents), most, CONTEXT_RADIUS)
        self._given, self._absent = torch.zeros(2, len(self.latents), dtype=torch.long)

    def add(self, text: TextBatch, where: Tensor, codes: Tensor, given: Tensor) -> None:
        """Count and sample the next batch.

        `where` is bool [rows, context], the positions that count. Codes are float32, and `given` is
        bool, [positions that count, latents], row by row.
        """
        codes, given = codes[:, self.latents], given[:, self.latents]
        self._given += given.sum(0)
        self._absent += (given & (codes == 0)).sum(0)
        self._own.add(text, where, given, codes)
        self._others.add(text, where, ~given, codes)

    def tokens_of(self, place: int) -> LatentTokens:
        """Tokens of a latent, by its place among the drawn latents."""
        given = int(self._given[place])
        return LatentTokens(
            int(self.latents[place]),
            given,
            int(self._absent[place]) / given if given else 0.0,
            self._own.tokens[place][self._own.there[place]],
            self._others.tokens[place][self._others.there[place]],
        )
