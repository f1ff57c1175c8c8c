"""SmolLM2's activations at several sites, computed once and kept in files."""

import functools
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.commands.demo.activations import tokenised_rows
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig

# 1400 rows of 255 tokens to train on, and 120 of each other part of a Split.
TRAINING_TOKENS, OTHER_TOKENS = 357_000, 30_600
LAYERS = (4, 9, 20)
ROWS_PER_FORWARD = 8


@dataclass(frozen=True)
class Site:
    """What a coder reads and what it reconstructs.

    Attributes:
        kind: "autoencoder" of the residual stream entering the layer, or "transcoder" of its MLP.
        layer: of SmolLM2, 0 to 29.
    """

    kind: str
    layer: int

    @property
    def hooks(self) -> tuple[str, str]:
        """Where inputs and targets are read, in TransformerLens' words."""
        if self.kind == "autoencoder":
            return (f"blocks.{self.layer}.hook_resid_pre",) * 2
        return f"blocks.{self.layer}.mlp.hook_in", f"blocks.{self.layer}.hook_mlp_out"


# Settings are chosen at this one.
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
    """Activations of one site; an autoencoder's are [tokens, d_in], a transcoder's are inputs
    and targets side by side, [tokens, d_in + d_out]; float16.

    Attributes:
        train: rows of text in random order, from nine articles of ten.
        choosing: other rows of the same articles. Settings are chosen here.
        held_out: further rows of the same articles, measured once the settings are chosen.
        held_out_articles: rows of the tenth articles, likewise. They resemble the training rows
            less, and every coder reconstructs them less closely.
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
    """The rows of text that every site's activations are of."""
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
    """Run the model where a site has no file of activations yet; once for all such sites."""
    missing = [site for site in sites if not _path(folder, site).is_file()]
    if missing:
        _compute(folder, missing)


# Cases of one site follow each other.
@functools.lru_cache(maxsize=1)
def load(folder: Path, site: Site) -> Split:
    """A site's activations, which compute_missing has written."""
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
        # Moved into place when whole, so that an interrupted run leaves no half.
        unfinished = _path(folder, site).with_suffix(".unfinished")
        save_file(site_parts.parts, unfinished)
        unfinished.replace(_path(folder, site))


class _Parts:
    """Collects a site's activations while the model runs."""

    def __init__(self, model: LlamaForCausalLM, site: Site) -> None:
        self.parts: dict[str, Tensor] = {}
        self._batches: list[Tensor] = []
        layer = model.model.layers[site.layer]
        if site.kind == "autoencoder":
            layer.register_forward_pre_hook(lambda _, inputs: self._add(inputs[0]))
        else:
            layer.mlp.register_forward_hook(lambda _, inputs, output: self._add(inputs[0], output))

    def _add(self, *activations: Tensor) -> None:
        pair = torch.cat(activations, dim=-1)
        self._batches.append(pair[:, FIRST_POSITION:].flatten(0, 1).half())

    def close(self, name: str) -> None:
        """Store the activations since the last call as the part of this name."""
        self.parts[name] = torch.cat(self._batches)
        self._batches.clear()
