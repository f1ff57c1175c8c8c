"""Samples places where latents are active or silent, and predicts firing from tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.documents import Estimate, TextBatch, estimate_of, resampled

SEED = 0
# Number of places kept for each latent where it is active; the same number where it is silent.
PLACES = 256
# Number of tokens kept on each side of a place.
CONTEXT_RADIUS, SILENT_RADIUS = 12, 1
CONTEXTS = 6
# Predictability uses the token and this number of neighbours on each side.
RADIUS = 1
# Weight, in firings, of the whole text's token frequencies as a prior for a latent's tokens.
PRIOR_FIRINGS = 10.0
# FEWEST_FIRINGS are needed to measure a latent, FEWEST_TAUGHT in other folds to learn from.
FEWEST_FIRINGS, FEWEST_TAUGHT = 12, 6
STRATA = ("all", "low", "middle", "high")
FOLDS = 5
LATENTS_AT_ONCE = 64
DECIMALS = 9


def draw_latents(width: int, count: int) -> Tensor:
    """Latents drawn by SEED: int64 [count] in rising order; all [width] if count is larger."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(width, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class SampledContext:
    """Token ids around a token on which a latent is active, and for each whether it is active."""

    tokens: list[int]
    fired: list[bool]


class Reservoir(nn.Module):
    """Uniform samples of up to `most` entries from each of several streams: [lists, most, ...].

    Each entry gets a random priority; those with the largest are kept. -inf marks an empty slot.
    """

    priorities: Tensor
    batches: Tensor

    def __init__(self, lists: int, most: int) -> None:
        super().__init__()
        self._most = most
        priorities = torch.full((lists, most), -torch.inf, dtype=torch.float64)
        self.register_buffer("priorities", priorities)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def draw(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw entries of the next batch, with priorities: both are [lists, at most `most`].

        `chosen`, bool [entries, lists], marks the entries that may be kept. Other entries get -inf.
        Entries that no list can keep are left out.
        """
        # The seed is the batch's number, so that a continued run draws the same as an unbroken one.
        generator = torch.Generator().manual_seed(int(self.batches))
        self.batches += 1
        draws = torch.rand(chosen.shape, dtype=torch.float64, generator=generator)
        draws = torch.where(chosen, draws, -torch.inf)
        # Once the lists are full, few entries of a batch are above a list's lowest priority. All
        # work on drawn entries grows with the list that has the most of them.
        candidates = (draws > self.priorities.amin(1)).sum(0)
        most = min(self._most, max(candidates.tolist(), default=0))
        priorities, entries = draws.topk(most, dim=0)
        return entries.T, priorities.T

    def keep(self, priorities: Tensor, **found: Tensor) -> None:
        """Keep the entries of the largest priorities, with their values for each buffer."""
        joined = torch.cat([self.priorities, priorities], dim=1)
        self.priorities, kept = joined.topk(self._most, dim=1)
        is_new = kept >= self._most
        lists, _ = is_new.nonzero().unbind(1)
        entries = kept[is_new] - self._most
        # Rows of one flat list are copied whole, which is faster than torch.gather.
        rows = kept.clamp(max=self._most - 1) + self._most * torch.arange(len(kept))[:, None]
        for name, values in found.items():
            old: Tensor = getattr(self, name)
            joined = old.flatten(0, 1).index_select(0, rows.flatten()).view_as(old)
            joined[is_new] = values[lists, entries]
            setattr(self, name, joined)

    @property
    def there(self) -> Tensor:
        """bool [lists, most], true for slots that hold an entry."""
        return self.priorities > -torch.inf


class PlaceSamples(Reservoir):
    """Uniform random samples of up to `most` places in the text for each latent.

    `tokens` and `values`, [latents, most, 2 * radius + 1], have the text around a place and the
    codes there. Beyond the ends of a row the token is -1.
    """

    documents: Tensor
    tokens: Tensor
    values: Tensor

    def __init__(self, latents: int, most: int, radius: int) -> None:
        super().__init__(latents, most)
        self._radius = radius
        shape = (latents, most, 2 * radius + 1)
        self.register_buffer("documents", torch.full(shape[:2], -1))
        self.register_buffer("tokens", torch.full(shape, -1))
        self.register_buffer("values", torch.zeros(shape))

    def add(self, text: TextBatch, where: Tensor, chosen: Tensor, values: Tensor) -> None:
        """Sample places from the next batch, at the positions `where`, bool [rows, context].

        `chosen`, bool, marks places to sample from; `values` are codes; both [positions, latents].
        """
        entries, priorities = self.draw(chosen)
        everywhere = torch.zeros(*where.shape, chosen.shape[1])
        everywhere[where] = values
        row, position = where.nonzero()[entries][..., None].unbind(-2)
        around = position + torch.arange(-self._radius, self._radius + 1)
        inside = (around >= 0) & (around < text.lengths[row])
        around = around.clamp(0, where.shape[1] - 1)
        tokens = torch.where(inside, text.tokens[row, around], -1)
        values = everywhere[row, around, torch.arange(len(row))[:, None, None]] * inside
        documents = torch.tensor(text.documents)[row[..., 0]]
        self.keep(priorities, documents=documents, tokens=tokens, values=values)


class LatentSamples(nn.Module):
    """Random places where the drawn latents of a coder are active (`firings`) and `silent`."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.latents = draw_latents(width, count)
        self.firings = PlaceSamples(len(self.latents), PLACES, CONTEXT_RADIUS)
        self.silent = PlaceSamples(len(self.latents), PLACES, SILENT_RADIUS)

    def add(self, text: TextBatch, where: Tensor, values: Tensor) -> None:
        """Sample from the next batch; `values` are codes, float32 [positions, sampled latents]."""
        self.firings.add(text, where, values != 0, values)
        self.silent.add(text, where, values == 0, values)

    def contexts(self, latent: int) -> list[SampledContext]:
        """Some places where a latent is active; `latent` is its place among the sampled latents."""
        there = self.firings.there[latent]
        # Take the first places, because they are in random order.
        tokens, values = (
            each[latent][there][:CONTEXTS] for each in (self.firings.tokens, self.firings.values)
        )
        return [
            SampledContext(ids[ids >= 0].tolist(), (codes[ids >= 0] != 0).tolist())
            for ids, codes in zip(tokens, values, strict=True)
        ]


@dataclass(frozen=True)
class Predictability:
    """How well the tokens around a place predict whether a latent fires there.

    areas, float64 [latents, STRATA], are areas under the ROC curve: the share of pairs (one firing,
    one silent token) that the scores put in the right order. The strata are all firings, and the
    thirds by activation. NaN if a latent fired too seldom, or its activations have no thirds.
    """

    areas: Tensor

    def estimate(self, stratum: str) -> Estimate:
        """Median over latents, with an interval by resampling latents; NaN if there are none."""
        areas = self.areas[:, STRATA.index(stratum)]
        areas = areas[areas.isfinite()]
        if not len(areas):
            return Estimate(float("nan"), float("nan"), float("nan"))
        return estimate_of(areas[resampled(len(areas))].median(dim=1).values)


def predictability(samples: LatentSamples) -> Predictability:
    """Naive Bayes on the tokens around a place, with five folds of documents.

    A place's score is the sum over these tokens of log p(token | firing) - log p(token). p(token |
    firing) is estimated from the latent's other firings, p(token) from the silent places of all
    latents. Both estimates use documents of the other folds only.
    """
    common = _shares(samples)
    areas = [
        _areas(_Places(samples.firings, part), _Places(samples.silent, part), common)
        for part in torch.arange(len(samples.latents)).split(LATENTS_AT_ONCE)
    ]
    return Predictability(torch.cat(areas) if areas else torch.zeros(0, len(STRATA)))


class _Places:
    """Sampled places: there, fold, values [latents, places], tokens [latents, places, window]."""

    def __init__(self, samples: PlaceSamples, latents: Tensor) -> None:
        self.there = samples.there[latents]
        self.fold = samples.documents[latents] % FOLDS
        self.tokens = _tokens_around(samples)[latents]
        self.values = samples.values[latents, :, samples.values.shape[2] // 2]


def _tokens_around(samples: PlaceSamples) -> Tensor:
    """int64 [latents, places, 2 * RADIUS + 1]: token + 1, or 0 beyond the ends of a row."""
    centre = samples.tokens.shape[2] // 2
    return samples.tokens[..., centre - RADIUS : centre + RADIUS + 1] + 1


def _shares(samples: LatentSamples) -> Tensor:
    """float64 [FOLDS, vocabulary]: share of each token among silent places outside a fold."""
    silent, tokens = samples.silent, _tokens_around(samples.silent)
    seen = torch.cat([tokens.flatten(), _tokens_around(samples.firings).flatten(), torch.zeros(1)])
    shares: list[Tensor] = []
    for fold in range(FOLDS):
        chosen = tokens[silent.there & (silent.documents % FOLDS != fold)]
        counts = chosen.flatten().bincount(minlength=int(seen.max()) + 1).double() + 1
        shares.append(counts / counts.sum())
    return torch.stack(shares)


def _areas(firings: _Places, silent: _Places, common: Tensor) -> Tensor:
    """float64 [latents, STRATA], areas under the ROC curve."""
    comparable = firings.there[:, :, None] & silent.there[:, None, :]
    # Compare scores within a fold only, because other folds have other counts.
    comparable &= firings.fold[:, :, None] == silent.fold[:, None, :]
    comparable &= _of_other_folds(firings, firings).sum(2, keepdim=True) >= FEWEST_TAUGHT
    scores = _scores(firings, firings, common), _scores(silent, firings, common)
    above = scores[0][:, :, None] - scores[1][:, None, :]
    # `won` counts each firing's pairs in the right order, `pairs` counts all its pairs.
    won = (((above.sign() + 1) / 2) * comparable).sum(2)
    pairs = comparable.sum(2)
    areas: list[Tensor] = []
    for stratum in _strata(firings):
        of_stratum = (won * stratum).sum(1) / (pairs * stratum).sum(1)
        enough = (stratum & (pairs > 0)).sum(1) >= FEWEST_FIRINGS
        areas.append(torch.where(enough, of_stratum, torch.nan))
    return torch.stack(areas, dim=1)


def _scores(places: _Places, firings: _Places, common: Tensor) -> Tensor:
    """float64 [latents, places], the score of each place from the tokens around it."""
    others = _of_other_folds(places, firings)
    scores = torch.zeros(places.fold.shape, dtype=torch.float64)
    for place in range(places.tokens.shape[2]):
        own = places.tokens[..., place]
        alike = own[:, :, None] == firings.tokens[:, None, :, place]
        times = (alike & others).sum(2) / common[places.fold, own]
        # This is log p(token | firing) / p(token); p(token) is also the prior of p(token | firing).
        scores += ((times + PRIOR_FIRINGS) / (others.sum(2) + PRIOR_FIRINGS)).log()
    # Round, so that ties compare equal. Ties are common, because many tokens have no firing.
    return scores.round(decimals=DECIMALS)


def _of_other_folds(places: _Places, firings: _Places) -> Tensor:
    """bool [latents, places, firings], true for firings from which a place's score is learnt."""
    return firings.there[:, None, :] & (places.fold[:, :, None] != firings.fold[:, None, :])


def _strata(firings: _Places) -> list[Tensor]:
    """bool [latents, places] for each stratum, true for the firings in it."""
    values = torch.where(firings.there, firings.values.double(), torch.inf)
    rank = values.argsort(dim=1, stable=True).argsort(dim=1)
    number = firings.there.sum(1, keepdim=True)
    lowest = values.amin(1, keepdim=True)
    differ = (firings.there & (values > lowest)).any(1, keepdim=True)
    third = (3 * rank // number.clamp_min(1)).clamp_max(3)
    return [firings.there, *(firings.there & differ & (third == each) for each in range(3))]
