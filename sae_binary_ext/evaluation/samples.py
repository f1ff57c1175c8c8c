"""Some latents in their text, from a stream: random places where each is active."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_binary_ext.evaluation.documents import TextBatch

CONTEXTS, RADIUS = 6, 12
# Latents of all coders are drawn alike.
SEED = 0


@dataclass(frozen=True)
class SampledContext:
    """A stretch of text around a token on which a latent is active.

    Attributes:
        tokens: ids, in reading order.
        fired: of each, whether the latent is active on it.
    """

    tokens: list[int]
    fired: list[bool]


class LatentSamples(nn.Module):
    """Of some latents up to CONTEXTS places, each of all their firings as likely as the others.

    Buffers: priorities float64 [latents, CONTEXTS], random numbers of which the largest are kept;
    tokens int64 and fired bool [latents, CONTEXTS, 2 * RADIUS + 1], the text around, with token -1
    beyond a row's ends; batches, how many were seen.

    Args:
        width: latents of the coder.
        count: how many of them to sample, drawn at random.
    """

    priorities: Tensor
    tokens: Tensor
    fired: Tensor
    batches: Tensor

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.latents = torch.randperm(width, generator=generator)[:count].sort().values
        shape = (len(self.latents), CONTEXTS)
        window = 2 * RADIUS + 1
        self.register_buffer("priorities", torch.full(shape, -torch.inf, dtype=torch.float64))
        self.register_buffer("tokens", torch.full((*shape, window), -1))
        self.register_buffer("fired", torch.zeros(*shape, window, dtype=torch.bool))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def add(self, text: TextBatch, where: Tensor, active: Tensor) -> None:
        """Sample from one batch more.

        Args:
            text: the rows.
            where: bool [rows, context], the positions that were measured on.
            active: bool [positions measured on, latents sampled], row by row.
        """
        # The same numbers in an interrupted and in an unbroken run.
        generator = torch.Generator().manual_seed(int(self.batches))
        self.batches += 1
        draws = torch.rand(active.shape, dtype=torch.float64, generator=generator)
        draws = torch.where(active, draws, -torch.inf)
        best = draws.topk(min(CONTEXTS, len(draws)), dim=0)
        everywhere = torch.zeros(*where.shape, active.shape[1], dtype=torch.bool)
        everywhere[where] = active
        tokens, fired = self._windows(text, everywhere, where.nonzero()[best.indices])
        priorities = torch.cat([self.priorities, best.values.T], dim=1)
        self.priorities, kept = priorities.topk(CONTEXTS, dim=1)
        place = kept[..., None].expand(-1, -1, tokens.shape[-1])
        self.tokens = torch.cat([self.tokens, tokens], dim=1).gather(1, place)
        self.fired = torch.cat([self.fired, fired], dim=1).gather(1, place)

    def _windows(self, text: TextBatch, active: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and firings around places [contexts, latents, 2], each [latents, contexts, _]."""
        row, position = places.transpose(0, 1).unbind(-1)
        around = position[..., None] + torch.arange(-RADIUS, RADIUS + 1)
        inside = (around >= 0) & (around < text.lengths[row][..., None])
        around = around.clamp(0, active.shape[1] - 1)
        latent = torch.arange(len(self.latents))[:, None, None]
        tokens = torch.where(inside, text.tokens[row[..., None], around], -1)
        return tokens, active[row[..., None], around, latent] & inside

    def contexts(self, place: int) -> list[SampledContext]:
        """The contexts of the latent at a place in `latents`, in random order."""
        found: list[SampledContext] = []
        for context in range(CONTEXTS):
            if self.priorities[place, context] > -torch.inf:
                inside = self.tokens[place, context] >= 0
                tokens, fired = (
                    each[place, context][inside].tolist() for each in (self.tokens, self.fired)
                )
                found.append(SampledContext(tokens, fired))
        return found
