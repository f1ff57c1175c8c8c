"""Where in the text a latent fires."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Context:
    """A stretch of text around a token on which a latent is active.

    Attributes:
        tokens: (text, whether the latent is active on it), in reading order.
    """

    tokens: list[tuple[str, bool]]


@dataclass(frozen=True)
class LatentContexts:
    """One latent, its firing rate and some of its contexts."""

    latent: int
    rate: float
    contexts: list[Context]


def choose_latents(rates: Tensor, count: int, tokens: int) -> list[int]:
    """Latents spread over the firing rates: evenly spaced ranks of those active often enough.

    Args:
        rates: [latents].
        count: how many to choose, at most.
        tokens: tokens the rates were measured on; ten firings are wanted to show a latent.
    """
    ranked = [int(latent) for latent in rates.argsort() if rates[latent] * tokens >= 10]
    places = torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().long()
    return [ranked[place] for place in places]


@torch.no_grad()
def latent_contexts(
    coder: SAE[Any],
    activations: Tensor,
    rows: list[list[str]],
    latents: list[int],
    rates: Tensor,
    *,
    contexts: int = 4,
    radius: int = 12,
    seed: int = 0,
) -> list[LatentContexts]:
    """Random places where each latent is active, with the text around.

    Args:
        coder: any SAELens coder.
        activations: [rows x positions, d_in], row by row.
        rows: the text of each token, of equally long rows.
        latents: which latents to show.
        rates: [latents of the coder], firing rates.
        contexts: places a latent, at most.
        radius: tokens shown on either side.
        seed: of the random choice of places.
    """
    columns = torch.tensor(latents)
    active = torch.cat(
        [coder.encode(x.float())[:, columns] != 0 for x in activations.split(TOKENS_PER_BATCH)]
    )
    active = active.view(len(rows), -1, len(latents))
    generator = torch.Generator().manual_seed(seed)
    shown: list[LatentContexts] = []
    for place, latent in enumerate(latents):
        hits = active[..., place].nonzero()
        chosen = hits[torch.randperm(len(hits), generator=generator)[:contexts]]
        found: list[Context] = []
        for row, position in chosen.tolist():
            window = range(max(position - radius, 0), min(position + radius + 1, len(rows[row])))
            fired = active[row, :, place].tolist()
            found.append(Context([(rows[row][i], fired[i]) for i in window]))
        shown.append(LatentContexts(latent, rates[latent].item(), found))
    return shown
