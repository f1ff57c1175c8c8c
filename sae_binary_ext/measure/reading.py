"""Open coders with their model, and read text for all of them with one forward pass a batch."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.bundled.smollm2 import MODEL_NAME, export_smollm2
from sae_binary_ext.measure.candidates import (
    Candidate,
    Site,
    at_common_sites,
    check_alike,
    load_candidates,
)
from sae_binary_ext.measure.documents import (
    ALL_ARTICLES,
    HELD_OUT_ARTICLES,
    OutlyingTokens,
    TextBatch,
    cut_rows,
    document_weights,
    read_all_documents,
    read_documents,
)
from sae_binary_ext.measure.figures import CoderFigures, RunningFigures, RunningVariance, TokenBatch
from sae_binary_ext.measure.in_model import (
    ROWS_PER_FORWARD,
    codes_of,
    fitting_context,
    open_model,
    read_hooks,
)
from sae_binary_ext.saelens.hooked_model import load_hooked_model
from sae_binary_ext.saelens.splice import HookedModel
from sae_binary_ext.settings import ReadingConfig, TextConfig, check_first_position

logger = logging.getLogger(__name__)
# Readers of the text, by the name of the embedded articles that they read without a dataset.
_READERS = {HELD_OUT_ARTICLES: read_documents, ALL_ARTICLES: read_all_documents}


@dataclass(frozen=True)
class ReadBatch:
    """Rows of text with the model's activations.

    Attributes:
        text: the rows.
        where: bool [rows, context], the positions that count; outliers do not.
        found: for each hook its activations, [rows, context, width].
    """

    text: TextBatch
    where: Tensor
    found: dict[str, Tensor]

    def activations(self, hooks: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inputs [tokens, d_in] and targets [tokens, d_out] at the positions that count."""
        source, target = (self.found[name][self.where] for name in hooks)
        return source, target

    def tokens(self, hooks: tuple[str, str], weights: Tensor, with_rows: bool = True) -> TokenBatch:
        """The activations for RunningFigures, with the weights of document_weights.

        with_rows keeps whole rows of inputs beside them, for coders that read sequences.
        """
        inputs, targets = self.activations(hooks)
        rows = self.found[hooks[0]] if with_rows else None
        return TokenBatch(inputs, targets, self.text, self.where, weights, rows)

    def codes(self, coder: Any, hook: str) -> Tensor:
        """Codes [tokens, latents] at the positions that count, of a coder that reads this hook."""
        return codes_of(coder, self.found[hook], self.where)


@dataclass(frozen=True)
class OpenedModel:
    """A model, the coders that belong to it, and the text to read.

    Attributes:
        candidates: autoencoders, or transcoders.
        hooks: for each site, the model's names of the hooks that its coders read and give.
        model: the hooked model.
        model_name: its name.
        tokenizer: its tokenizer.
        text_name: names the text.
        documents: gives the texts, from the first one each time it is called.
        outliers: the tokens that the last reading left out.
        context_size: tokens a row at most, no more than the model has positions.
        first_position: positions before it do not count.
    """

    candidates: list[Candidate]
    hooks: dict[Site, tuple[str, str]]
    model: HookedModel
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    documents: Callable[[], Iterable[str]]
    outliers: OutlyingTokens
    context_size: int
    first_position: int

    def batches(self, tokens: int) -> Iterator[tuple[TextBatch, int]]:
        """Batches of rows, each with its number of tokens that count.

        They have at least so many tokens in all: the last batch is finished. A text that ends
        earlier is logged.
        """
        taken = 0
        rows = cut_rows(self.documents(), self.tokenizer, self.context_size, ROWS_PER_FORWARD)
        for batch in rows:
            number = int(batch.positions(self.first_position).sum())
            yield batch, number
            taken += number
            if taken >= tokens:
                return
        logger.warning("The text ends after %d of %d tokens.", taken, tokens)

    def forward(self, tokens: Tensor, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        """Activations of one forward pass at the hooks of all coders.

        Args:
            tokens: int64 [rows, context].
            more_hooks: the model's names of other hooks to read.

        Returns:
            For each hook [rows, context, width].

        Raises:
            ValueError: a coder has other widths than the activations.
        """
        names = {name for pair in self.hooks.values() for name in pair} | set(more_hooks)
        found = read_hooks(self.model, names, tokens)
        for candidate in self.candidates:
            source, target = self.hooks[candidate.site]
            candidate.check_widths(found[source], found[target])
        return found

    def read(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> ReadBatch:
        """The activations of a batch, and which of its positions count; else as forward."""
        found = self.forward(text.tokens, more_hooks)
        where = self.outliers.within(found, text.positions(self.first_position))
        return ReadBatch(text, where, found)


def open_coders(
    sources: Iterable[str], config: TextConfig, folder: Path, embedded: str = HELD_OUT_ARTICLES
) -> OpenedModel:
    """Load coders and their model.

    Args:
        sources: coders' folders, folders of such folders, or Hub ids of either.
        config: names the text, and the hook of coders whose files name none.
        folder: gets the embedded model's files, in "model"; it is made if it does not exist.
        embedded: names the articles that are read without config.dataset.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders of several models, or autoencoders beside transcoders.
    """
    candidates = load_candidates(sources, config.hook, config.device)
    return open_in_model(candidates, config, folder, embedded)


def open_in_model(
    candidates: list[Candidate], config: TextConfig, folder: Path, embedded: str = HELD_OUT_ARTICLES
) -> OpenedModel:
    """Load the model of coders that are loaded; else as open_coders."""
    check_alike(candidates)
    folder.mkdir(parents=True, exist_ok=True)
    name, model, tokenizer = open_model(candidates, config.model, folder, config.device)
    return _opened(candidates, model, name, tokenizer, config, embedded)


def open_model_alone(config: TextConfig, folder: Path) -> OpenedModel:
    """Load config.model, or SmolLM2 from the installed package, without coders.

    Without config.dataset all embedded articles are read, because no coder was trained on them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = config.model or str(export_smollm2(folder / "model"))
    model: Any = load_hooked_model(None, path, config.device)
    name, tokenizer = config.model or MODEL_NAME, cast(PreTrainedTokenizerBase, model.tokenizer)
    return _opened([], model, name, tokenizer, config, ALL_ARTICLES)


def _opened(
    candidates: list[Candidate],
    model: HookedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TextConfig,
    embedded: str,
) -> OpenedModel:
    candidates, hooks = at_common_sites(candidates, model)
    context_size = fitting_context(model, config.context_size)
    check_first_position(config.first_position, context_size)
    return OpenedModel(
        candidates,
        hooks,
        model,
        name,
        tokenizer,
        config.dataset or embedded,
        lambda: _READERS[embedded](config.text_source()),
        OutlyingTokens(config.norm_limit if isinstance(config, ReadingConfig) else math.inf),
        context_size,
        config.first_position,
    )


def settings_of(opened: OpenedModel, config: TextConfig) -> dict[str, str]:
    """A command's settings for its files, with the names and numbers that reading decided."""
    found = {
        "model": opened.model_name,
        "dataset": opened.text_name,
        "context_size": opened.context_size,
    }
    if isinstance(config, ReadingConfig):
        found["tokens_left_out"] = opened.outliers.left_out
    return {key: str(value) for key, value in (asdict(config) | found).items()}


def read_text(
    opened: OpenedModel,
    config: TextConfig,
    description: str = "Reading",
    more_hooks: Iterable[str] = (),
) -> Iterator[ReadBatch]:
    """Batches of config.tokens of text with their activations, with a progress bar.

    Raises:
        ValueError: there is no text, or a coder has other widths than the model's activations.
    """
    more_hooks = list(more_hooks)
    opened.outliers.start()
    with tqdm(total=config.tokens, desc=description, unit="tokens", unit_scale=True) as progress:
        read = 0
        for text, tokens in opened.batches(config.tokens):
            yield opened.read(text, more_hooks)
            read += tokens
            progress.update(tokens)
        if not read:
            raise ValueError("dataset: holds no text to read.")


class RunningCoders:
    """Figures of all opened coders from one reading of the text."""

    def __init__(self, opened: OpenedModel) -> None:
        self._opened = opened
        self.variances = {each.site: RunningVariance(each.d_out) for each in opened.candidates}
        self._figures = [RunningFigures(each.coder) for each in opened.candidates]

    def add(self, batch: ReadBatch) -> Iterator[tuple[Candidate, TokenBatch, Tensor]]:
        """Count a batch; yields each coder, its activations and its active latents, on the CPU."""
        weights = document_weights(batch.text.documents)
        tokens: dict[Site, TokenBatch] = {}
        for site, variance in self.variances.items():
            tokens[site] = batch.tokens(self._opened.hooks[site], weights)
            variance.add(tokens[site])
        for candidate, figures in zip(self._opened.candidates, self._figures, strict=True):
            own = tokens[candidate.site]
            yield candidate, own, figures.add(own)

    def figures(self) -> list[CoderFigures]:
        """The figures so far, in the order of the coders."""
        pairs = zip(self._opened.candidates, self._figures, strict=True)
        return [figures.figures(self.variances[each.site]) for each, figures in pairs]
