"""Runs SmolLM2 over the text, and streams the activations of several sites into files."""

import functools
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM

from benchmarks.reconstruction.activations import Site, Split, watch
from benchmarks.scale.corpus import ROW, Rows, read_rows
from sae_binary_ext.coding.kernels.processor import multiplies_bfloat16
from sae_binary_ext.commands.demo.config import FIRST_POSITION

WIDTH = 576  # of SmolLM2's residual stream
ROWS_PER_FORWARD = 16
# A run that was stopped goes on after the last whole part of this many rows.
ROWS_PER_PART = 400
TOKENS_OF_ROW = ROW - FIRST_POSITION


def load(folder: Path, site: Site, training_tokens: int) -> Split:
    """A site's activations, float16; training rows are read from the disk as they are used.

    ValueError if fewer training tokens were computed.
    """
    rows = read_rows(folder)
    done = _Done(folder).rows(site, "train") * TOKENS_OF_ROW
    if done < training_tokens:
        raise ValueError(f"training_tokens={training_tokens}: {folder} has {done} of {site}.")
    parts = {part.name: _map(folder, site, part.name, rows) for part in fields(Rows)}
    parts["train"] = parts["train"][:training_tokens]
    # All held-out rows are of documents that training did not read.
    return Split(**parts, held_out_articles=parts["held_out"])


@torch.no_grad()
def compute_missing(folder: Path, training_tokens: dict[Site, int]) -> None:
    """Run the model over the rows of text, as many training tokens for each site as given."""
    rows, done = read_rows(folder), _Done(folder)
    # Without instructions for bfloat16, a processor takes four times as long as with float32.
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=dtype).eval()
    model.model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    found: dict[Site, Tensor] = {}
    for site in training_tokens:
        watch(model, site, functools.partial(found.__setitem__, site))
    layers = model.model.layers
    for part in ("choosing", "held_out", "train"):
        tokens: Tensor = getattr(rows, part)
        maps = {site: _map(folder, site, part, rows) for site in training_tokens}
        for start in tqdm(range(0, len(tokens), ROWS_PER_PART), f"Activations: {part}"):
            end = min(start + ROWS_PER_PART, len(tokens))
            missing = [
                site
                for site, wanted in training_tokens.items()
                if done.rows(site, part) < end
                and (part != "train" or start * TOKENS_OF_ROW < wanted)
            ]
            if not missing:
                continue
            # The model stops at the last layer that is read.
            model.model.layers = layers[: max(site.layer for site in missing) + 1]
            for batch in torch.arange(start, end).split(ROWS_PER_FORWARD):
                model.model(tokens[batch].long(), use_cache=False)
                at = slice(int(batch[0]) * TOKENS_OF_ROW, (int(batch[-1]) + 1) * TOKENS_OF_ROW)
                for site in missing:
                    maps[site][at] = found[site]
            done.add(missing, part, end)


class _Done:
    """How many rows of each site and part were computed, each number in a file of its own.

    So two commands may compute different sites in the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, site: Site, part: str) -> int:
        path = self._path(site, part)
        return int(path.read_text()) if path.is_file() else 0

    def add(self, sites: list[Site], part: str, rows: int) -> None:
        for site in sites:
            self._path(site, part).write_text(str(rows))

    def _path(self, site: Site, part: str) -> Path:
        return (self._folder / _name(site, part)).with_suffix(".rows")


def _name(site: Site, part: str) -> str:
    return f"{site.kind}_{site.layer}_{part}"


def _map(folder: Path, site: Site, part: str, rows: Rows) -> Tensor:
    """The file of one part's activations, as a tensor [tokens, width of the site]."""
    path = (folder / _name(site, part)).with_suffix(".f16")
    width = WIDTH * (1 + (site.kind == "transcoder"))
    tokens = len(getattr(rows, part)) * TOKENS_OF_ROW
    path.touch()
    # A file as long as the whole text takes only as much of the disk as was written.
    with path.open("r+b") as file:
        file.truncate(tokens * width * 2)
    return torch.from_numpy(np.memmap(path, np.float16, "r+", shape=(tokens, width)))
