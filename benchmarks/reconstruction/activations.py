"""Computes SmolLM2's activations at several sites once, and saves them in files."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.commands.demo.activations import tokenised_rows
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig

# Training has 1400 rows of 255 tokens. Each other part of a Split has 120 rows.
TRAINING_TOKENS, OTHER_TOKENS = 357_000, 30_600
LAYERS = (4, 9, 20)
ROWS_PER_FORWARD = 8


@dataclass(frozen=True)
class Site:
    """The place in the model where a coder reads and reconstructs activations.

    Attributes:
        kind: "autoencoder" of the residual stream entering the layer, or "transcoder" of its MLP.
        layer: number of the layer in SmolLM2, 0 to 29.
    """

    kind: str
    layer: int

    @property
    def hooks(self) -> tuple[str, str]:
        """TransformerLens' names of two hooks: a coder's input and its target."""
        if self.kind == "autoencoder":
            return (f"blocks.{self.layer}.hook_resid_pre",) * 2
        return f"blocks.{self.layer}.mlp.hook_in", f"blocks.{self.layer}.hook_mlp_out"


# The settings of all cases are chosen at this site.
MAIN_SITE = Site("autoencoder", 9)
SITES = [
    MAIN_SITE,
    *(
        site
        for kind in ("autoencoder", "transcoder")
        for layer in LAYERS
        if (site := Site(kind, layer)) != MAIN_SITE
    ),
]


@dataclass(frozen=True)
class Split:
    """Activations of one site, float16: [tokens, d_in] for an autoencoder.

    For a transcoder, inputs and targets lie side by side, [tokens, d_in + d_out].

    Attributes:
        train: rows of text in random order, from nine articles of ten.
        choosing: other rows of the same articles, on which settings are chosen.
        held_out: further rows of the same articles, measured once the settings are chosen.
        held_out_articles: rows of every tenth article, also measured at the end. These rows are
            less like the training rows, so each coder has a higher FVU on them.
    """

    train: Tensor
    choosing: Tensor
    held_out: Tensor
    held_out_articles: Tensor


@dataclass(frozen=True)
class Rows:
    """Token ids, int64 [rows, context_size], of each part of a Split."""

    train: Tensor
    choosing: Tensor
    held_out: Tensor
    held_out_articles: Tensor


def read_rows(folder: Path) -> Rows:
    """The rows of text whose activations are computed at each site."""
    config = DemoConfig(
        training_tokens=TRAINING_TOKENS + 2 * OTHER_TOKENS, held_out_tokens=OTHER_TOKENS
    )
    tokenizer = AutoTokenizer.from_pretrained(export_smollm2(folder / "model"))
    rows, of_held_out_articles = tokenised_rows(config, tokenizer)
    training, other = (
        tokens // (config.context_size - FIRST_POSITION)
        for tokens in (TRAINING_TOKENS, OTHER_TOKENS)
    )
    return Rows(*rows.split([training, other, other]), of_held_out_articles)


def compute_missing(folder: Path, sites: list[Site]) -> None:
    """Run the model once, for all sites that have no file of activations yet."""
    missing = [site for site in sites if not _path(folder, site).is_file()]
    if missing:
        _compute(folder, missing)


# A cache of one entry is enough, because cases of one site run one after another.
@functools.lru_cache(maxsize=1)
def load(folder: Path, site: Site) -> Split:
    """Read a site's activations, which compute_missing has written."""
    return Split(**load_file(_path(folder, site)))


def _path(folder: Path, site: Site) -> Path:
    return folder / f"{site.kind}_{site.layer}.safetensors"


@torch.no_grad()
def _compute(folder: Path, sites: list[Site]) -> None:
    rows = read_rows(folder)
    model = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    model.model.layers = model.model.layers[: max(site.layer for site in sites) + 1]
    model.model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    parts = {site: _Parts(model, site) for site in sites}
    for part in fields(rows):
        batches = getattr(rows, part.name).split(ROWS_PER_FORWARD)
        for batch in tqdm(batches, f"Activations: {part.name}"):
            model.model(batch, use_cache=False)
        for site_parts in parts.values():
            site_parts.close(part.name)
    for site, site_parts in parts.items():
        # The file is renamed when complete, so that an interrupted run leaves no partial file.
        unfinished = _path(folder, site).with_suffix(".unfinished")
        save_file(site_parts.parts, unfinished)
        unfinished.replace(_path(folder, site))


def watch(model: LlamaForCausalLM, site: Site, keep: Callable[[Tensor], Any]) -> None:
    """Call keep with a site's activations on each forward, float16 [tokens, width of the site]."""

    def add(*activations: Tensor) -> None:
        pair = torch.cat(activations, dim=-1)
        keep(pair[:, FIRST_POSITION:].flatten(0, 1).half())

    layer = model.model.layers[site.layer]
    if site.kind == "autoencoder":
        layer.register_forward_pre_hook(lambda _, inputs: add(inputs[0]))
    else:
        layer.mlp.register_forward_hook(lambda _, inputs, output: add(inputs[0], output))


class _Parts:
    """Collects the activations of one site while the model runs."""

    def __init__(self, model: LlamaForCausalLM, site: Site) -> None:
        self.parts: dict[str, Tensor] = {}
        self._batches: list[Tensor] = []
        watch(model, site, self._batches.append)

    def close(self, name: str) -> None:
        """Store the activations since the last call as the part with this name."""
        self.parts[name] = torch.cat(self._batches)
        self._batches.clear()
