"""Views of latents for the report: text in which they fire, and tokens that they promote."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import token_texts
from sae_binary_ext.saelens.splice import HookedModel

PROMOTED = 8
# Hooks with no vectors of the residual stream, though some are as wide.
INSIDE_A_BLOCK = re.compile(r"attn\.hook_[qkvz]|mlp\.hook_(pre|post)|hook_(normalized|scale)")


@dataclass(frozen=True)
class LatentView:
    """One latent.

    Attributes:
        latent: its number.
        rate: its firing rate.
        contexts: (text, whether it is active) of each token, in reading order.
        promoted: tokens whose logits its decoder row raises most, the strongest first; none where
            the row is no vector of the residual stream.
        matches: (name of another coder, its latent, correlation) of the latents that fire most
            like it; none where it never or always fires.
    """

    latent: int
    rate: float
    contexts: list[list[tuple[str, bool]]]
    promoted: list[str]
    matches: list[tuple[str, int, float]]


def latent_views(
    compared: ComparedCoder, model: HookedModel, tokenizer: PreTrainedTokenizerBase
) -> list[LatentView]:
    """Views of a coder's sampled latents, highest firing rate first.

    Args:
        compared: the coder.
        model: the hooked model.
        tokenizer: its tokenizer.
    """
    text = token_texts(tokenizer)
    coder, samples, rates = compared.candidate.coder, compared.samples, compared.figures.rates
    rows = coder.W_dec[samples.latents.to(coder.device)]
    inside = INSIDE_A_BLOCK.search(compared.candidate.site.hook_name_out)
    promoted = [[] for _ in rows] if inside else promoted_tokens(rows, model)
    views = [
        LatentView(
            latent,
            rates[latent].item(),
            [
                [(text(token), fired) for token, fired in zip(each.tokens, each.fired, strict=True)]
                for each in samples.contexts(place)
            ],
            [text(token) for token in promoted[place]],
            [
                (name, int(matches.latents[place]), matches.correlations[place].item())
                for name, matches in compared.matches.items()
                if matches.correlations[place].isfinite()
            ],
        )
        for place, latent in enumerate(samples.latents.tolist())
    ]
    return sorted(views, key=lambda view: -view.rate)


@torch.no_grad()
def promoted_tokens(rows: Tensor, model: HookedModel) -> list[list[int]]:
    """For each decoder row, the tokens whose logits it raises most through the unembedding.

    Args:
        rows: [latents, d_out].
        model: the hooked model. If it has no W_U of this width, the lists are empty.
    """
    unembedding = getattr(model, "W_U", None)
    if not isinstance(unembedding, Tensor) or unembedding.shape[0] != rows.shape[1]:
        return [[] for _ in rows]
    # If the last norm is not folded into W_U, its scale comes between.
    scale = getattr(getattr(model, "ln_final", None), "weight", None)
    scaled = rows.to(unembedding) * (scale if isinstance(scale, Tensor) else 1)
    return (scaled @ unembedding).topk(PROMOTED, dim=1).indices.tolist()
