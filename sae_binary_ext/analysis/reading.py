"""Text read with a model, for coders of any format at one or several of its hooks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.demo.model import MODEL_NAME, export_smollm2
from sae_binary_ext.evaluation.candidates import (
    Candidate,
    Site,
    at_common_sites,
    check_alike,
    load_candidates,
)
from sae_binary_ext.evaluation.documents import TextBatch, read_documents
from sae_binary_ext.evaluation.in_model import read_hooks
from sae_binary_ext.evaluation.models import open_model
from sae_binary_ext.evaluation.run import EMBEDDED_TEXT
from sae_binary_ext.evaluation.stream import batches_of
from sae_binary_ext.evaluation.text_config import TextConfig
from sae_binary_ext.saelens.models import load_hooked_model
from sae_binary_ext.saelens.splice import HookedModel


@dataclass(frozen=True)
class OpenedModel:
    """A model, and the coders that belong to it.

    Attributes:
        candidates: autoencoders, or transcoders.
        hooks: of each site, the model's names of what its coders read and of what they give.
        model: the hooked model.
        model_name: its name.
        tokenizer: its tokenizer.
    """

    candidates: list[Candidate]
    hooks: dict[Site, tuple[str, str]]
    model: HookedModel
    model_name: str
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReadBatch:
    """Rows of text and what the model makes of them.

    Attributes:
        text: the rows.
        where: bool [rows, context], the positions that count.
        found: of each hook that was asked for, [rows, context, width].
    """

    text: TextBatch
    where: Tensor
    found: dict[str, Tensor]

    def activations(self, hooks: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inputs [tokens, d_in] and targets [tokens, d_out] at the positions that count."""
        source, target = (self.found[name][self.where] for name in hooks)
        return source, target


def open_coders(sources: Iterable[str], config: TextConfig, folder: Path) -> OpenedModel:
    """Load coders and their model.

    Args:
        sources: coders' folders, folders of such folders, or Hub ids of either.
        config: where they belong, where the files do not tell.
        folder: where the embedded model's files go, into "model"; made where there is none.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders of several models, or autoencoders beside transcoders.
    """
    candidates = load_candidates(sources, config.hook, config.device)
    check_alike(candidates)
    folder.mkdir(parents=True, exist_ok=True)
    name, model, tokenizer = open_model(candidates, config.model, folder, config.device)
    candidates, hooks = at_common_sites(candidates, model)
    return OpenedModel(candidates, hooks, model, name, tokenizer)


def open_model_alone(config: TextConfig, folder: Path) -> OpenedModel:
    """Load a model without coders: config.model, or SmolLM2 from the installed package.

    Args:
        config: which.
        folder: as open_coders takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = config.model or str(export_smollm2(folder / "model"))
    model: Any = load_hooked_model(None, path, config.device)
    name = config.model or MODEL_NAME
    return OpenedModel([], {}, model, name, cast(PreTrainedTokenizerBase, model.tokenizer))


def text_name(config: TextConfig) -> str:
    """What the text is, for a command's files."""
    return config.dataset or EMBEDDED_TEXT


def read_text(
    opened: OpenedModel,
    config: TextConfig,
    description: str = "Reading",
    more_hooks: Iterable[str] = (),
) -> Iterator[ReadBatch]:
    """Batches of text, a forward pass each, with a progress bar.

    Args:
        opened: from open_coders.
        config: which text, how much of it, and how it is cut.
        description: for the progress bar.
        more_hooks: to read beside those of the coders, as the model names them.

    Yields:
        Batches with the activations of all these hooks.

    Raises:
        ValueError: there is no text, or a coder has other widths than the model's activations.
    """
    names = {name for pair in opened.hooks.values() for name in pair} | set(more_hooks)
    documents = read_documents(config.dataset)
    batches = batches_of(documents, opened.tokenizer, config, config.tokens)
    with tqdm(total=config.tokens, desc=description, unit="tokens", unit_scale=True) as progress:
        read = 0
        for text, tokens in batches:
            where = text.positions(config.first_position)
            batch = ReadBatch(text, where, read_hooks(opened.model, names, text.tokens))
            for candidate in opened.candidates:
                source, target = opened.hooks[candidate.site]
                candidate.check_widths(batch.found[source], batch.found[target])
            yield batch
            read += tokens
            progress.update(tokens)
        if not read:
            raise ValueError("dataset: holds no text to read.")
