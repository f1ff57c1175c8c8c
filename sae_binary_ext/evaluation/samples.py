"""Some latents in their text, from a stream: random places where each is active, or silent."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.evaluation.documents import TextBatch

# Latents of all coders are drawn alike.
SEED = 0
# Of each latent, places where it is active and as many where it is silent; text around the former.
PLACES = 256
CONTEXT_RADIUS, SILENT_RADIUS = 12, 1
CONTEXTS = 6


@dataclass(frozen=True)
class SampledContext:
    """A stretch of text around a token on which a latent is active.

    Attributes:
        tokens: ids, in reading order.
        fired: of each, whether the latent is active on it.
    """

    tokens: list[int]
    fired: list[bool]


class PlaceSamples(nn.Module):
    """Of some latents up to `most` places in the text, each chosen one as likely as the others.

    Buffers: priorities float64 [latents, most], random numbers of which the largest are kept, -inf
    where there is none; documents int64 [latents, most], of each place; tokens int64 and values
    float32 [latents, most, 2 * radius + 1], the text around and the latent's code on it, with
    token -1 beyond a row's ends; batches, how many were seen.

    Args:
        latents: how many.
        most: places of each.
        radius: tokens to keep to either side of a place.
    """

    priorities: Tensor
    documents: Tensor
    tokens: Tensor
    values: Tensor
    batches: Tensor

    def __init__(self, latents: int, most: int, radius: int) -> None:
        super().__init__()
        self._most, self._radius = most, radius
        shape = (latents, most)
        window = 2 * radius + 1
        self.register_buffer("priorities", torch.full(shape, -torch.inf, dtype=torch.float64))
        self.register_buffer("documents", torch.full(shape, -1))
        self.register_buffer("tokens", torch.full((*shape, window), -1))
        self.register_buffer("values", torch.zeros(*shape, window))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def add(self, text: TextBatch, where: Tensor, chosen: Tensor, values: Tensor) -> None:
        """Sample from one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that were measured on.
            chosen: bool [positions measured on, latents], row by row, those to sample from.
            values: float32, the latents' codes there.
        """
        # The same numbers in an interrupted and in an unbroken run.
        generator = torch.Generator().manual_seed(int(self.batches))
        self.batches += 1
        draws = torch.rand(chosen.shape, dtype=torch.float64, generator=generator)
        draws = torch.where(chosen, draws, -torch.inf)
        best = draws.topk(min(self._most, len(draws)), dim=0)
        everywhere = torch.zeros(*where.shape, chosen.shape[1])
        everywhere[where] = values
        places = where.nonzero()[best.indices]
        tokens, values = self._windows(text, everywhere, places)
        priorities = torch.cat([self.priorities, best.values.T], dim=1)
        self.priorities, kept = priorities.topk(self._most, dim=1)
        documents = torch.tensor(text.documents)[places[..., 0].T]
        self.documents = torch.cat([self.documents, documents], dim=1).gather(1, kept)
        place = kept[..., None].expand(-1, -1, tokens.shape[-1])
        self.tokens = torch.cat([self.tokens, tokens], dim=1).gather(1, place)
        self.values = torch.cat([self.values, values], dim=1).gather(1, place)

    def _windows(self, text: TextBatch, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and codes around places [most, latents, 2], each [latents, most, window]."""
        row, position = places.transpose(0, 1).unbind(-1)
        around = position[..., None] + torch.arange(-self._radius, self._radius + 1)
        inside = (around >= 0) & (around < text.lengths[row][..., None])
        around = around.clamp(0, values.shape[1] - 1)
        latent = torch.arange(values.shape[2])[:, None, None]
        tokens = torch.where(inside, text.tokens[row[..., None], around], -1)
        return tokens, values[row[..., None], around, latent] * inside

    @property
    def there(self) -> Tensor:
        """bool [latents, most]: where there is a place."""
        return self.priorities > -torch.inf


class LatentSamples(nn.Module):
    """Some latents of a coder: random places where each is active, and where it is silent.

    Attributes:
        latents: int64 [count] in rising order, drawn at random, or all.
        firings, silent: places of each.

    Args:
        width: latents of the coder.
        count: how many of them to sample.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.latents = torch.randperm(width, generator=generator)[:count].sort().values
        self.firings = PlaceSamples(len(self.latents), PLACES, CONTEXT_RADIUS)
        self.silent = PlaceSamples(len(self.latents), PLACES, SILENT_RADIUS)

    def add(self, text: TextBatch, where: Tensor, values: Tensor) -> None:
        """Sample from one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that were measured on.
            values: float32 [positions measured on, latents sampled], their codes, row by row.
        """
        self.firings.add(text, where, values != 0, values)
        self.silent.add(text, where, values == 0, values)

    def contexts(self, latent: int) -> list[SampledContext]:
        """Some places where a latent, by its number among those sampled, is active."""
        found: list[SampledContext] = []
        # The places stand in random order.
        for context in self.firings.there[latent].nonzero().flatten()[:CONTEXTS].tolist():
            inside = self.firings.tokens[latent, context] >= 0
            tokens = self.firings.tokens[latent, context][inside]
            fired = self.firings.values[latent, context][inside] != 0
            found.append(SampledContext(tokens.tolist(), fired.tolist()))
        return found
