"""Reads activations to fit decoders to: as a stream, or as two halves of a text in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.training import activations_store
from torch import Tensor

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.measure import documents
from sae_binary_ext.measure.candidates import candidate_of
from sae_binary_ext.measure.figures import CoderFigures, RunningFigures, RunningVariance, TokenBatch
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, reads_sequences
from sae_binary_ext.measure.reading import OpenedModel, open_in_model, read_text
from sae_binary_ext.settings import ReadingConfig, TextConfig, TextSource

DEFAULT_CONTEXT = 256
# Columns of token ids, as SAELens names them.
TOKEN_COLUMNS = ("tokens", "input_ids")


@dataclass(frozen=True)
class Text:
    """A text, and the model that reads it.

    Attributes:
        dataset: a dataset of texts, in any form that TextSource takes, or of token ids.
        model: Hub id or folder of the model; None takes the model that the coder's files name.
        tokens: how many tokens to use.
        context_size: tokens in a row. None takes the context size of the coder's training, or 256.
        split: split of the dataset; None takes train, or the only split of a save_to_disk folder.
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

    The coder's metadata names its hooks and positions. text.tokens has no effect here. Yields
    [tokens, d_in] and [tokens, d_out]; for an autoencoder both are the same.

    Raises:
        ValueError: the hook or the model is not named, the model lacks the hook or head, or the
            dataset lacks the split or column.
    """
    metadata = coder.cfg.metadata
    model_name = text.model or metadata.model_name
    if metadata.hook_name is None or model_name is None:
        raise ValueError(
            f"hook_name={metadata.hook_name!r}, model={model_name!r}: the coder's files do not say "
            "where it belongs. Name its model, and its hook as sparsify names it (layers.9)."
        )
    if metadata.prepend_bos is None:
        # sparsify's files do not have this setting. True is SAELens' default.
        metadata.prepend_bos = True
    wanted = text.context_size or metadata.context_size or DEFAULT_CONTEXT
    config = TextConfig(model_name, context_size=wanted, first_position=0, device=str(coder.device))
    opened = open_in_model([candidate_of(coder, metadata.model_name or "coder")], config, Path())
    (hooks,) = opened.hooks.values()
    store = activations_store.ActivationsStore.from_sae(
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
            found = opened.forward(store.get_batch_tokens(raise_at_epoch_end=True))
        except StopIteration:
            return
        inputs, targets = (found[name][:, positions].flatten(0, 1) for name in hooks)
        yield inputs, targets


def _dataset_of(text: Text, model: Any) -> Any:
    """The dataset as a stream with one column, which has a name that ActivationsStore expects."""
    dataset: Any = documents.open_dataset(text.dataset, text.split)
    if isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    entry = next(iter(dataset), None)
    if entry is None:
        raise ValueError(f"dataset={text.dataset!r}: holds no text to read.")
    tokens = [name for name in TOKEN_COLUMNS if name in entry]
    if text.text_column in (None, *tokens) and tokens:
        # SAELens checks only datasets that it opens itself, so check here.
        if not Path(text.dataset).exists():
            activations_store.validate_pretokenized_dataset_tokenizer(text.dataset, model.tokenizer)
        return dataset.select_columns([text.text_column or tokens[0]])
    column = documents.text_column(TextSource(text.dataset, text.split, text.text_column), entry)
    dataset, wanted = dataset.select_columns([column]), documents.TEXT_COLUMN
    return dataset if column == wanted else dataset.rename_column(column, wanted)


@dataclass(frozen=True)
class Halves:
    """Inputs [tokens, d_in] and targets [tokens, d_out] to fit to, and batches to measure on."""

    fitted: list[tuple[Tensor, Tensor]]
    measured: list[TokenBatch]

    def mean_norm(self) -> float:
        """Mean norm of the measured inputs."""
        return torch.cat([batch.inputs.norm(dim=1) for batch in self.measured]).mean().item()

    def to_fit(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The half to fit to, on a device and in float32."""
        return ((x.to(device).float(), y.to(device).float()) for x, y in self.fitted)


def read_halves(
    opened: OpenedModel, config: ReadingConfig, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Halves]:
    """Read a text at pairs of the model's hooks. Documents go to the two halves in turn.

    ValueError if there is only one document.
    """
    states = {pair: Halves([], []) for pair in pairs}
    keeps_rows = any(reads_sequences(each.coder) for each in opened.candidates)
    for batch in read_text(opened, config, more_hooks={name for pair in states for name in pair}):
        odd = torch.tensor(batch.text.documents)[:, None] % 2 == 1
        weights = documents.document_weights(batch.text.documents)
        fitted = replace(batch, where=batch.where & ~odd)
        measured = replace(batch, where=batch.where & odd)
        for pair, own in states.items():
            if fitted.where.any():
                own.fitted.append(fitted.activations(pair))
            if measured.where.any():
                own.measured.append(measured.tokens(pair, weights, keeps_rows))
    if not all(own.fitted and own.measured for own in states.values()):
        raise ValueError(
            "dataset: the text read is one document, and decoders are fitted to one document and "
            "measured on another. Give more tokens, or a text of several documents."
        )
    return states


def figures_on(coder: Any, batches: list[TokenBatch]) -> CoderFigures:
    """Figures of a coder on batches of activations."""
    running = RunningFigures(coder)
    variance = RunningVariance(batches[0].targets.shape[1])
    for batch in batches:
        variance.add(batch)
        running.add(batch)
    return running.figures(variance)
