"""Writes a comparison as report.html, one file that needs no network.

The report's views of latents have text in which a latent fires, and tokens that it promotes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from markupsafe import Markup
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.commands.interpret.interpret_page import Interpretability
from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import token_texts
from sae_binary_ext.report.comparison_files import site_tables
from sae_binary_ext.report.plots import coder_plots, grouped, write_page
from sae_binary_ext.saelens.splice import HookedModel

PROMOTED = 8
# Hooks whose vectors are not in the residual stream, even if their width is the same.
INSIDE_A_BLOCK = re.compile(r"attn\.hook_[qkvz]|mlp\.hook_(pre|post)|hook_(normalized|scale)")


@dataclass(frozen=True)
class LatentView:
    """What the report shows of one latent.

    Attributes:
        contexts: (text, whether the latent is active) for each token, in reading order.
        promoted: tokens whose logits the decoder row raises most, strongest first; none if the row
            is not in the residual stream.
        matches: (name of another coder, its latent, correlation) for latents that fire most like
            this one; none if this latent never or always fires.
    """

    latent: int
    rate: float
    contexts: list[list[tuple[str, bool]]]
    promoted: list[str]
    matches: list[tuple[str, int, float]]


def write_comparison_report(
    coders: list[ComparedCoder],
    latents: list[list[LatentView]],
    run: dict[str, Any],
    path: Path,
    more_plots: Mapping[str, go.Figure] | None = None,
    interpretability: Interpretability | None = None,
) -> None:
    """Write the report: sortable tables, plots, and views of each coder's latents.

    `run` has the comparison's settings. `more_plots` has further plots by title. `interpretability`
    has scores of the same coders.
    """
    by_site = grouped(coders, lambda coder: str(coder.candidate.site))
    plots = {site: coder_plots(of_site) for site, of_site in by_site.items()}
    plots[""] = dict(more_plots or {})
    if interpretability is not None:
        plots[""] |= {"Interpretability, by firing rate": interpretability.plot}
    views = zip(coders, latents, strict=True)
    data = {coder.candidate.name: [vars(view) for view in of] for coder, of in views}
    write_page(
        path,
        "comparison.html.j2",
        plots,
        title="Coders compared",
        tables=site_tables(coders),
        interpretability=interpretability,
        run=run,
        tokens=coders[0].figures.tokens,
        # Escape "<", because "</script>" within a text would end the script element.
        data=Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")),
    )


def latent_views(
    compared: ComparedCoder, model: HookedModel, tokenizer: PreTrainedTokenizerBase
) -> list[LatentView]:
    """Views of a coder's sampled latents, in falling order of firing rate."""
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
    """For each decoder row [latents, d_out], the tokens whose logits the row raises most.

    The logits are those of the unembedding. If the model has no W_U of this width, the lists are
    empty.
    """
    unembedding = getattr(model, "W_U", None)
    if not isinstance(unembedding, Tensor) or unembedding.shape[0] != rows.shape[1]:
        return [[] for _ in rows]
    # If the last norm is not folded into W_U, multiply the rows by its scale first.
    scale = getattr(getattr(model, "ln_final", None), "weight", None)
    scaled = rows.to(unembedding) * (scale if isinstance(scale, Tensor) else 1)
    return (scaled @ unembedding).topk(PROMOTED, dim=1).indices.tolist()
