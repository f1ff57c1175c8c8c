"""Latents as a reader meets them: in their text, and by the tokens that they promote."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.evaluation.samples import LatentSamples
from sae_binary_ext.saelens.splice import HookedModel

PROMOTED = 8


@dataclass(frozen=True)
class LatentView:
    """One latent.

    Attributes:
        latent: its number.
        rate: its firing rate.
        contexts: (text, whether it is active) of each token, in reading order.
        promoted: tokens whose logits its decoder row raises most, the strongest first; none where
            the row is not of the residual stream's width.
    """

    latent: int
    rate: float
    contexts: list[list[tuple[str, bool]]]
    promoted: list[str]


def latent_views(
    samples: LatentSamples,
    rates: Tensor,
    coder: SAE[Any],
    model: HookedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[LatentView]:
    """The sampled latents, by falling firing rate.

    Args:
        samples: of the coder's latents.
        rates: [latents of the coder].
        coder: any SAELens coder.
        model: the hooked model.
        tokenizer: its tokenizer.
    """

    @cache
    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    promoted = promoted_tokens(coder.W_dec[samples.latents.to(coder.device)], model)
    views = [
        LatentView(
            latent,
            rates[latent].item(),
            [
                [(text(token), fired) for token, fired in zip(each.tokens, each.fired, strict=True)]
                for each in samples.contexts(place)
            ],
            [text(token) for token in promoted[place]],
        )
        for place, latent in enumerate(samples.latents.tolist())
    ]
    return sorted(views, key=lambda view: -view.rate)


@torch.no_grad()
def promoted_tokens(rows: Tensor, model: HookedModel) -> list[list[int]]:
    """Of each decoder row the tokens whose logits it raises most, by the unembedding alone.

    Args:
        rows: [latents, d_out].
        model: the hooked model; one without W_U, or with one of another width, gives none.
    """
    unembedding = getattr(model, "W_U", None)
    if not isinstance(unembedding, Tensor) or unembedding.shape[0] != rows.shape[1]:
        return [[] for _ in rows]
    # The last norm's scale stands between the residual stream and W_U where it is not folded.
    scale = getattr(getattr(model, "ln_final", None), "weight", None)
    scaled = rows.to(unembedding) * (scale if isinstance(scale, Tensor) else 1)
    return (scaled @ unembedding).topk(PROMOTED, dim=1).indices.tolist()
