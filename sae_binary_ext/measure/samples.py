"""Random places in the text where latents are active or silent, and what the tokens there tell.

The first paper asks how interpretable continuous latents are at low, middle and high activation,
beside binary ones. Predictability is a first answer without a judge: how well a model of a few
tokens tells whether a latent fires.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.documents import Estimate, TextBatch, estimate_of, resampled

# The draw of latents is the same for all coders of one width.
SEED = 0
# Places kept for each latent where it is active, and as many where it is silent.
PLACES = 256
# Tokens kept to either side of a place.
CONTEXT_RADIUS, SILENT_RADIUS = 12, 1
CONTEXTS = 6
# Predictability reads the token and one to either side.
RADIUS = 1
# Weight, in firings, of the tokens of the whole text in the estimate of a latent's tokens.
PRIOR_FIRINGS = 10.0
# Firings needed to measure a latent, and firings of other folds needed to learn from.
FEWEST_FIRINGS, FEWEST_TAUGHT = 12, 6
STRATA = ("all", "low", "middle", "high")
FOLDS = 5
LATENTS_AT_ONCE = 64
DECIMALS = 9


def draw_latents(width: int, count: int) -> Tensor:
    """Draw latents at random: int64 [count] in rising order; all [width] if count is larger."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(width, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class SampledContext:
    """Token ids around a token on which a latent is active, and whether it is active on each."""

    tokens: list[int]
    fired: list[bool]


class Reservoir(nn.Module):
    """Uniform random samples of up to `most` entries from each of several streams.

    Entries with the largest random priorities are kept. Buffers: priorities float64 [lists, most],
    -inf for places still empty; batches, how many were seen. Subclasses add buffers
    [lists, most, ...].
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
        """Draw priorities for one more batch; `chosen` is bool [entries, lists].

        Returns int64 [lists, at most `most`], the entries that may be kept, and their priorities,
        float64, which are -inf for entries not chosen.
        """
        # Seeded by the batch, so that an interrupted run draws what an unbroken one does.
        generator = torch.Generator().manual_seed(int(self.batches))
        self.batches += 1
        draws = torch.rand(chosen.shape, dtype=torch.float64, generator=generator)
        draws = torch.where(chosen, draws, -torch.inf)
        best = draws.topk(min(self._most, len(draws)), dim=0)
        return best.indices.T, best.values.T

    def keep(self, priorities: Tensor, **found: Tensor) -> None:
        """Keep the entries of the largest priorities, and the values found for each buffer."""
        joined = torch.cat([self.priorities, priorities], dim=1)
        self.priorities, kept = joined.topk(self._most, dim=1)
        for name, values in found.items():
            values = torch.cat([getattr(self, name), values], dim=1)
            index = kept.reshape(*kept.shape, *[1] * (values.ndim - 2))
            setattr(self, name, values.gather(1, index.expand(-1, -1, *values.shape[2:])))

    @property
    def there(self) -> Tensor:
        """bool [lists, most], the places that hold an entry."""
        return self.priorities > -torch.inf


class PlaceSamples(Reservoir):
    """Uniform random samples of up to `most` places in the text for each latent.

    Buffers: documents int64 [latents, most], of each place; tokens int64 and values float32
    [latents, most, 2 * radius + 1], the text around a place and the latent's codes there. Beyond
    the ends of a row the token is -1.
    """

    documents: Tensor
    tokens: Tensor
    values: Tensor

    def __init__(self, latents: int, most: int, radius: int) -> None:
        super().__init__(latents, most)
        self._radius = radius
        shape = (latents, most)
        window = 2 * radius + 1
        self.register_buffer("documents", torch.full(shape, -1))
        self.register_buffer("tokens", torch.full((*shape, window), -1))
        self.register_buffer("values", torch.zeros(*shape, window))

    def add(self, text: TextBatch, where: Tensor, chosen: Tensor, values: Tensor) -> None:
        """Sample from one more batch.

        `where` is bool [rows, context], the positions measured. `chosen`, bool
        [positions, latents], has the places to sample from; `values`, float32, the codes there.
        """
        entries, priorities = self.draw(chosen)
        everywhere = torch.zeros(*where.shape, chosen.shape[1])
        everywhere[where] = values
        places = where.nonzero()[entries]
        tokens, values = self._windows(text, everywhere, places)
        documents = torch.tensor(text.documents)[places[..., 0]]
        self.keep(priorities, documents=documents, tokens=tokens, values=values)

    def _windows(self, text: TextBatch, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and codes around places [latents, most, 2], each [latents, most, window]."""
        row, position = places.unbind(-1)
        around = position[..., None] + torch.arange(-self._radius, self._radius + 1)
        inside = (around >= 0) & (around < text.lengths[row][..., None])
        around = around.clamp(0, values.shape[1] - 1)
        latent = torch.arange(values.shape[2])[:, None, None]
        tokens = torch.where(inside, text.tokens[row[..., None], around], -1)
        return tokens, values[row[..., None], around, latent] * inside


class LatentSamples(nn.Module):
    """Random places where latents of a coder are active (firings), and where they are silent.

    `latents`, int64 [count], has the latents' numbers, from draw_latents.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.latents = draw_latents(width, count)
        self.firings = PlaceSamples(len(self.latents), PLACES, CONTEXT_RADIUS)
        self.silent = PlaceSamples(len(self.latents), PLACES, SILENT_RADIUS)

    def add(self, text: TextBatch, where: Tensor, values: Tensor) -> None:
        """Sample from one more batch; values float32 [positions measured, sampled latents]."""
        self.firings.add(text, where, values != 0, values)
        self.silent.add(text, where, values == 0, values)

    def contexts(self, latent: int) -> list[SampledContext]:
        """Some places where a latent is active, by its number among the sampled latents."""
        found: list[SampledContext] = []
        # The places are in random order.
        for context in self.firings.there[latent].nonzero().flatten()[:CONTEXTS].tolist():
            inside = self.firings.tokens[latent, context] >= 0
            tokens = self.firings.tokens[latent, context][inside]
            fired = self.firings.values[latent, context][inside] != 0
            found.append(SampledContext(tokens.tolist(), fired.tolist()))
        return found


@dataclass(frozen=True)
class Predictability:
    """How well the tokens around a place tell whether a latent fires there.

    Attributes:
        areas: float64 [latents, STRATA], area under the ROC curve; 0.5 is chance. It is the share
            of pairs (one firing, one silent token) that the scores put in the right order. The
            strata are all firings, and the thirds of lowest, middle and highest activation. NaN if
            the latent fired too seldom; NaN for thirds if all its activations are equal.
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

    A place's score is the sum over these tokens of log p(token | firing) - log p(token).
    p(token | firing) is estimated from the latent's other firings, p(token) from the silent places
    of all latents; both come from documents of the other folds.
    """
    parts = torch.arange(len(samples.latents)).split(LATENTS_AT_ONCE)
    common = _shares(samples)
    areas = [
        _areas(_Places(samples.firings, part), _Places(samples.silent, part), common)
        for part in parts
    ]
    return Predictability(torch.cat(areas) if areas else torch.zeros(0, len(STRATA)))


class _Places:
    """Sampled places: there, fold, values [latents, places]; tokens [latents, places, window]."""

    def __init__(self, samples: PlaceSamples, latents: Tensor) -> None:
        self.there = samples.there[latents]
        self.fold = samples.documents[latents] % FOLDS
        self.tokens = _tokens_around(samples)[latents]
        self.values = samples.values[latents, :, samples.values.shape[2] // 2]


def _tokens_around(samples: PlaceSamples) -> Tensor:
    """int64 [latents, places, 2 * RADIUS + 1], token + 1; 0 is beyond the ends of a row."""
    centre = samples.tokens.shape[2] // 2
    return samples.tokens[..., centre - RADIUS : centre + RADIUS + 1] + 1


def _shares(samples: LatentSamples) -> Tensor:
    """float64 [FOLDS, vocabulary]: each token's share of the silent text outside a fold."""
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
    """float64 [latents, STRATA], areas under the ROC curve."""
    firing_scores = _scores(firings, firings, common)
    silent_scores = _scores(silent, firings, common)
    comparable = firings.there[:, :, None] & silent.there[:, None, :]
    # Only scores of one fold come from the same counts.
    comparable &= firings.fold[:, :, None] == silent.fold[:, None, :]
    taught = (_of_other_folds(firings, firings).sum(2) >= FEWEST_TAUGHT)[:, :, None]
    comparable &= taught
    above = firing_scores[:, :, None] - silent_scores[:, None, :]
    # For each firing, pairs in the right order and all its pairs.
    won = (((above.sign() + 1) / 2) * comparable).sum(2)
    pairs = comparable.sum(2)
    areas: list[Tensor] = []
    for stratum in _strata(firings):
        of_stratum = (won * stratum).sum(1) / (pairs * stratum).sum(1)
        enough = (stratum & (pairs > 0)).sum(1) >= FEWEST_FIRINGS
        areas.append(torch.where(enough, of_stratum, torch.nan))
    return torch.stack(areas, dim=1)


def _scores(places: _Places, firings: _Places, common: Tensor) -> Tensor:
    """float64 [latents, places], scores of the tokens around each place."""
    others = _of_other_folds(places, firings)
    number = others.sum(2)
    scores = torch.zeros(places.fold.shape, dtype=torch.float64)
    for place in range(places.tokens.shape[2]):
        own = places.tokens[..., place]
        alike = own[:, :, None] == firings.tokens[:, None, :, place]
        times = (alike & others).sum(2)
        # p(token | firing) / p(token), where p(token) is the prior of the former.
        ratio = (times / common[places.fold, own] + PRIOR_FIRINGS) / (number + PRIOR_FIRINGS)
        scores += ratio.log()
    # Round, so that ties compare equal: many tokens have no firing.
    return scores.round(decimals=DECIMALS)


def _of_other_folds(places: _Places, firings: _Places) -> Tensor:
    """bool [latents, places, firings], the firings that a place's score is learnt from."""
    return firings.there[:, None, :] & (places.fold[:, :, None] != firings.fold[:, None, :])


def _strata(firings: _Places) -> list[Tensor]:
    """bool [latents, places] for each stratum, the firings in it."""
    values = torch.where(firings.there, firings.values.double(), torch.inf)
    rank = values.argsort(dim=1, stable=True).argsort(dim=1)
    number = firings.there.sum(1, keepdim=True)
    lowest = values.amin(1, keepdim=True)
    differ = (firings.there & (values > lowest)).any(1, keepdim=True)
    third = (3 * rank // number.clamp_min(1)).clamp_max(3)
    return [firings.there, *(firings.there & differ & (third == each) for each in range(3))]
