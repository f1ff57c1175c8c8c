"""Activations of a text at the hook of a coder, as its metadata says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens import SAE
from sae_lens.training.activations_store import (
    ActivationsStore,
    validate_pretokenized_dataset_tokenizer,
)
from torch import Tensor

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.measure.candidates import candidate_of
from sae_binary_ext.measure.documents import TEXT_COLUMN, open_dataset, text_column
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.reading import open_in_model
from sae_binary_ext.settings import TextConfig, TextSource

DEFAULT_CONTEXT = 256
# Columns of token ids, as SAELens names them.
TOKEN_COLUMNS = ("tokens", "input_ids")


@dataclass(frozen=True)
class Text:
    """A text, and the model to read it with.

    Attributes:
        dataset: a dataset of texts, in any form that TextSource takes, or of token ids.
        model: Hub id or folder; None takes the model that the coder's files name.
        tokens: how many tokens to use.
        context_size: tokens in a row, at most the model's positions; None takes the context size of
            the coder's training, or 256.
        split: of the dataset; None takes train, or the only split of a folder of save_to_disk.
        text_column: the column of the texts; None takes token ids (tokens, input_ids), text, or
            the only column of strings.
    """

    dataset: str
    model: str | None = None
    tokens: int = 300_000
    context_size: int | None = None
    split: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens)
        if self.context_size is not None:
            check_at_least(2, context_size=self.context_size)


def read_activations(coder: SAE[Any], text: Text) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of a coder, a few rows of text at a time, until the text ends.

    Args:
        coder: an autoencoder or a transcoder of SAELens. Its metadata names its hooks and the
            positions it is for.
        text: what to read; text.tokens has no effect here.

    Yields:
        [tokens, d_in] and [tokens, d_out]; for an autoencoder both are the same.

    Raises:
        ValueError: the coder's files do not name its hook, or neither they nor text a model; the
            model has no such hook or head; or the dataset has no such split or column.
    """
    metadata = coder.cfg.metadata
    model_name = text.model or metadata.model_name
    if metadata.hook_name is None or model_name is None:
        raise ValueError(
            f"hook_name={metadata.hook_name!r}, model={model_name!r}: the coder's files do not say "
            "where it belongs. Name its model, and its hook as sparsify names it (layers.9)."
        )
    # sparsify's files lack this setting; True is SAELens' default.
    if metadata.prepend_bos is None:
        metadata.prepend_bos = True
    wanted = text.context_size or metadata.context_size or DEFAULT_CONTEXT
    config = TextConfig(model_name, context_size=wanted, first_position=0, device=str(coder.device))
    opened = open_in_model([candidate_of(coder, metadata.model_name or "coder")], config, Path())
    (hooks,) = opened.hooks.values()
    store = ActivationsStore.from_sae(
        opened.model,  # pyright: ignore[reportArgumentType]
        coder,
        _dataset_of(text, opened.model),
        context_size=opened.context_size,
        store_batch_size_prompts=ROWS_PER_FORWARD,
        device=str(coder.device),
    )
    positions = slice(*metadata.seqpos_slice) if metadata.seqpos_slice else slice(None)
    while True:
        try:
            rows = store.get_batch_tokens(raise_at_epoch_end=True)
        except StopIteration:
            return
        found = opened.forward(rows)
        inputs, targets = (found[name][:, positions].flatten(0, 1) for name in hooks)
        yield inputs, targets


def _dataset_of(text: Text, model: Any) -> Any:
    """A stream with one column, named as ActivationsStore expects."""
    dataset: Any = open_dataset(text.dataset, text.split)
    if isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    entry = next(iter(dataset), None)
    if entry is None:
        raise ValueError(f"dataset={text.dataset!r}: holds no text to read.")
    tokens = [name for name in TOKEN_COLUMNS if name in entry]
    if text.text_column in (None, *tokens) and tokens:
        # SAELens checks only datasets that it opens itself, so check here.
        if not Path(text.dataset).exists():
            validate_pretokenized_dataset_tokenizer(text.dataset, model.tokenizer)
        return dataset.select_columns([text.text_column or tokens[0]])
    column = text_column(TextSource(text.dataset, text.split, text.text_column), entry)
    dataset = dataset.select_columns([column])
    return dataset if column == TEXT_COLUMN else dataset.rename_column(column, TEXT_COLUMN)
