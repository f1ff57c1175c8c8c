"""Some latents in their text, from a stream: random places where each is active, or silent."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.measure.documents import TextBatch

# Latents of all coders are drawn alike.
SEED = 0
# Of each latent, places where it is active and as many where it is silent; text around the former.
PLACES = 256
CONTEXT_RADIUS, SILENT_RADIUS = 12, 1
CONTEXTS = 6


def draw_latents(width: int, count: int) -> Tensor:
    """Some latents of a coder, drawn at random: int64 [count] in rising order, or all [width]."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(width, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class SampledContext:
    """A stretch of text around a token on which a latent is active.

    Attributes:
        tokens: ids, in reading order.
        fired: of each, whether the latent is active on it.
    """

    tokens: list[int]
    fired: list[bool]


class Reservoir(nn.Module):
    """Of several lists up to `most` entries of a stream each, one as likely as another.

    Buffers: priorities float64 [lists, most], random numbers of which the largest are kept, -inf
    where there is none; batches, how many were seen. Subclasses add buffers [lists, most, ...].

    Args:
        lists: how many.
        most: entries of each.
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
        """Random numbers for one batch more, and which entries may have to be kept.

        Args:
            chosen: bool [entries, lists].

        Returns:
            int64 [lists, at most `most`], entries, and float64 likewise, their priorities; -inf
            for those not chosen.
        """
        # The same numbers in an interrupted and in an unbroken run.
        generator = torch.Generator().manual_seed(int(self.batches))
        self.batches += 1
        draws = torch.rand(chosen.shape, dtype=torch.float64, generator=generator)
        draws = torch.where(chosen, draws, -torch.inf)
        best = draws.topk(min(self._most, len(draws)), dim=0)
        return best.indices.T, best.values.T

    def keep(self, priorities: Tensor, **found: Tensor) -> None:
        """Keep the largest priorities, with what was found of their entries.

        Args:
            priorities: float64 [lists, entries], of draw.
            found: by buffer, [lists, entries, ...].
        """
        joined = torch.cat([self.priorities, priorities], dim=1)
        self.priorities, kept = joined.topk(self._most, dim=1)
        for name, values in found.items():
            values = torch.cat([getattr(self, name), values], dim=1)
            index = kept.reshape(*kept.shape, *[1] * (values.ndim - 2))
            setattr(self, name, values.gather(1, index.expand(-1, -1, *values.shape[2:])))

    @property
    def there(self) -> Tensor:
        """bool [lists, most]: where there is an entry."""
        return self.priorities > -torch.inf


class PlaceSamples(Reservoir):
    """Of some latents up to `most` places in the text, each chosen one as likely as the others.

    Buffers: documents int64 [latents, most], of each place; tokens int64 and values float32
    [latents, most, 2 * radius + 1], the text around and the latent's code on it, with token -1
    beyond a row's ends.

    Args:
        latents: how many.
        most: places of each.
        radius: tokens to keep to either side of a place.
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
        """Sample from one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that were measured on.
            chosen: bool [positions measured on, latents], row by row, those to sample from.
            values: float32, the latents' codes there.
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
        self.latents = draw_latents(width, count)
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
