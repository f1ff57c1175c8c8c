"""How well a latent's firing can be told from its tokens alone, by how strongly it fires.

The first paper asks how interpretable continuous latents are at low, middle and high activation,
beside binary ones. This is a first answer that needs no judge: what a model of a few tokens knows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.measure.intervals import Estimate, estimate_of, resampled
from sae_binary_ext.measure.samples import LatentSamples, PlaceSamples

# The token, and one to either side.
RADIUS = 1
# Weight, in firings, of the text's own tokens in what a latent's tokens are taken to be.
PRIOR_FIRINGS = 10.0
# With fewer firings to ask about, or to learn from, nothing is said of a latent.
FEWEST_FIRINGS, FEWEST_TAUGHT = 12, 6
STRATA = ("all", "low", "middle", "high")
FOLDS = 5
LATENTS_AT_ONCE = 64
DECIMALS = 9


@dataclass(frozen=True)
class Predictability:
    """Of some latents how well their firing is told from silence.

    Attributes:
        areas: float64 [latents, STRATA], area under the ROC curve: the share of pairs of a firing
            and a silent token that the tokens around put in the right order, 0.5 being chance. Of
            all firings, and of the thirds of lowest, middle and highest activation. NaN where a
            latent fired too seldom, and for thirds where all its activations are the same.
    """

    areas: Tensor

    def estimate(self, stratum: str) -> Estimate:
        """Median over latents, with its interval over latents drawn again; NaN where none is."""
        areas = self.areas[:, STRATA.index(stratum)]
        areas = areas[areas.isfinite()]
        if not len(areas):
            return Estimate(float("nan"), float("nan"), float("nan"))
        return estimate_of(areas[resampled(len(areas))].median(dim=1).values)


def predictability(samples: LatentSamples) -> Predictability:
    """Naive Bayes of the tokens around, asked about a fifth of the documents, taught by the rest.

    A place's score is the sum over the tokens around of log p(token | firing) - log p(token), with
    p(token | firing) from the latent's other firings and p(token) from the silent places of all
    latents, both of the documents of the other folds.
    """
    parts = torch.arange(len(samples.latents)).split(LATENTS_AT_ONCE)
    common = _shares(samples)
    areas = [
        _areas(_Places(samples.firings, part), _Places(samples.silent, part), common)
        for part in parts
    ]
    return Predictability(torch.cat(areas) if areas else torch.zeros(0, len(STRATA)))


class _Places:
    """Samples of some latents: there, fold, values [latents, places]; tokens [..., window]."""

    def __init__(self, samples: PlaceSamples, latents: Tensor) -> None:
        self.there = samples.there[latents]
        self.fold = samples.documents[latents] % FOLDS
        self.tokens = _tokens_around(samples)[latents]
        self.values = samples.values[latents, :, samples.values.shape[2] // 2]


def _tokens_around(samples: PlaceSamples) -> Tensor:
    """int64 [latents, places, 2 * RADIUS + 1]; from 0, which stands for beyond a row's ends."""
    centre = samples.tokens.shape[2] // 2
    return samples.tokens[..., centre - RADIUS : centre + RADIUS + 1] + 1


def _shares(samples: LatentSamples) -> Tensor:
    """float64 [FOLDS, vocabulary]: each token's share of the silent text that is not of a fold."""
    silent = samples.silent
    tokens = _tokens_around(silent)
    seen = torch.cat([tokens.flatten(), _tokens_around(samples.firings).flatten(), torch.zeros(1)])
    vocabulary = int(seen.max()) + 1
    shares: list[Tensor] = []
    for fold in range(FOLDS):
        chosen = tokens[silent.there & (silent.documents % FOLDS != fold)]
        counts = torch.bincount(chosen.flatten(), minlength=vocabulary).double() + 1
        shares.append(counts / counts.sum())
    return torch.stack(shares)


def _areas(firings: _Places, silent: _Places, common: Tensor) -> Tensor:
    """float64 [latents, STRATA]."""
    firing_scores = _scores(firings, firings, common)
    silent_scores = _scores(silent, firings, common)
    comparable = firings.there[:, :, None] & silent.there[:, None, :]
    # Scores of one fold come from the same counts.
    comparable &= firings.fold[:, :, None] == silent.fold[:, None, :]
    taught = (_of_other_folds(firings, firings).sum(2) >= FEWEST_TAUGHT)[:, :, None]
    comparable &= taught
    above = firing_scores[:, :, None] - silent_scores[:, None, :]
    # Pairs won of each firing, and pairs it is in.
    won = (((above.sign() + 1) / 2) * comparable).sum(2)
    pairs = comparable.sum(2)
    areas: list[Tensor] = []
    for stratum in _strata(firings):
        of_stratum = (won * stratum).sum(1) / (pairs * stratum).sum(1)
        enough = (stratum & (pairs > 0)).sum(1) >= FEWEST_FIRINGS
        areas.append(torch.where(enough, of_stratum, torch.nan))
    return torch.stack(areas, dim=1)


def _scores(places: _Places, firings: _Places, common: Tensor) -> Tensor:
    """float64 [latents, places]."""
    others = _of_other_folds(places, firings)
    number = others.sum(2)
    scores = torch.zeros(places.fold.shape, dtype=torch.float64)
    for place in range(places.tokens.shape[2]):
        own = places.tokens[..., place]
        alike = own[:, :, None] == firings.tokens[:, None, :, place]
        times = (alike & others).sum(2)
        # p(token | firing) / p(token), the former with a prior of p(token).
        ratio = (times / common[places.fold, own] + PRIOR_FIRINGS) / (number + PRIOR_FIRINGS)
        scores += ratio.log()
    # Round, so that ties compare equal: many tokens have no firing.
    return scores.round(decimals=DECIMALS)


def _of_other_folds(places: _Places, firings: _Places) -> Tensor:
    """bool [latents, places, firings]: the firings that a place's score is learnt from."""
    return firings.there[:, None, :] & (places.fold[:, :, None] != firings.fold[:, None, :])


def _strata(firings: _Places) -> list[Tensor]:
    """Of STRATA which firings belong to each, bool [latents, places]."""
    values = torch.where(firings.there, firings.values.double(), torch.inf)
    rank = values.argsort(dim=1, stable=True).argsort(dim=1)
    number = firings.there.sum(1, keepdim=True)
    lowest = values.amin(1, keepdim=True)
    differ = (firings.there & (values > lowest)).any(1, keepdim=True)
    third = (3 * rank // number.clamp_min(1)).clamp_max(3)
    return [firings.there, *(firings.there & differ & (third == each) for each in range(3))]
