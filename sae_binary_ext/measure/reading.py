"""Text read with a model, for coders of any format at one or several of its hooks."""

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
    read_all_documents,
    read_documents,
)
from sae_binary_ext.measure.figures import TokenBatch
from sae_binary_ext.measure.in_model import codes_of, fitting_context, open_model, read_hooks
from sae_binary_ext.measure.stream import RowCut, batches_of
from sae_binary_ext.saelens.hooked_model import load_hooked_model
from sae_binary_ext.saelens.splice import HookedModel
from sae_binary_ext.settings import ReadingConfig, check_first_position


@dataclass(frozen=True)
class OpenedModel:
    """A model, and the coders that belong to it.

    Attributes:
        candidates: autoencoders, or transcoders.
        hooks: of each site, the model's names of what its coders read and of what they give.
        model: the hooked model.
        model_name: its name.
        tokenizer: its tokenizer.
        text_name: what is read with it.
        documents: gives the texts, from the first on each time it is called.
        outliers: the tokens that the last reading left out.
        context_size: tokens a row at most, no more than the model has positions.
    """

    candidates: list[Candidate]
    hooks: dict[Site, tuple[str, str]]
    model: HookedModel
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    documents: Callable[[], Iterator[str]]
    outliers: OutlyingTokens
    context_size: int


@dataclass(frozen=True)
class ReadBatch:
    """Rows of text and what the model makes of them.

    Attributes:
        text: the rows.
        where: bool [rows, context], the positions that count, outliers not among them.
        found: of each hook that was asked for, [rows, context, width].
    """

    text: TextBatch
    where: Tensor
    found: dict[str, Tensor]

    def activations(self, hooks: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inputs [tokens, d_in] and targets [tokens, d_out] at the positions that count."""
        source, target = (self.found[name][self.where] for name in hooks)
        return source, target

    def tokens(self, hooks: tuple[str, str], weights: Tensor) -> TokenBatch:
        """The same for RunningFigures, with the weights of document_weights."""
        inputs, targets = self.activations(hooks)
        return TokenBatch(inputs, targets, self.text, self.where, weights, self.found[hooks[0]])

    def codes(self, coder: Any, hook: str) -> Tensor:
        """Codes [tokens, latents] at the positions that count, of a coder that reads this hook."""
        return codes_of(coder, self.found[hook], self.where)


def open_coders(sources: Iterable[str], config: ReadingConfig, folder: Path) -> OpenedModel:
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
    return OpenedModel(
        candidates,
        hooks,
        model,
        name,
        tokenizer,
        config.dataset or HELD_OUT_ARTICLES,
        lambda: read_documents(config.text_source()),
        OutlyingTokens(config.norm_limit),
        _context_size(model, config),
    )


def open_model_alone(config: ReadingConfig, folder: Path) -> OpenedModel:
    """Load a model without coders: config.model, or SmolLM2 from the installed package.

    No coder was trained on the text before, and without config.dataset all embedded articles are
    read.

    Args:
        config: which.
        folder: as open_coders takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = config.model or str(export_smollm2(folder / "model"))
    model: Any = load_hooked_model(None, path, config.device)
    name = config.model or MODEL_NAME
    tokenizer = cast(PreTrainedTokenizerBase, model.tokenizer)
    return OpenedModel(
        [],
        {},
        model,
        name,
        tokenizer,
        config.dataset or ALL_ARTICLES,
        lambda: read_all_documents(config.text_source()),
        OutlyingTokens(config.norm_limit),
        _context_size(model, config),
    )


def _context_size(model: HookedModel, config: ReadingConfig) -> int:
    context_size = fitting_context(model, config.context_size)
    check_first_position(config.first_position, context_size)
    return context_size


def settings_of(opened: OpenedModel, config: ReadingConfig) -> dict[str, str]:
    """A command's settings for its files, and what was left to be found out.

    Args:
        opened: the model, after the reading.
        config: all of the settings.
    """
    found = {
        "model": opened.model_name,
        "dataset": opened.text_name,
        "tokens_left_out": opened.outliers.left_out,
        "context_size": opened.context_size,
    }
    return {key: str(value) for key, value in (asdict(config) | found).items()}


def read_text(
    opened: OpenedModel,
    config: ReadingConfig,
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
    cut = RowCut(opened.context_size, config.first_position)
    batches = batches_of(opened.documents(), opened.tokenizer, cut, config.tokens)
    opened.outliers.start()
    with tqdm(total=config.tokens, desc=description, unit="tokens", unit_scale=True) as progress:
        read = 0
        for text, tokens in batches:
            found = read_hooks(opened.model, names, text.tokens)
            where = opened.outliers.within(found, text.positions(config.first_position))
            batch = ReadBatch(text, where, found)
            for candidate in opened.candidates:
                source, target = opened.hooks[candidate.site]
                candidate.check_widths(batch.found[source], batch.found[target])
            yield batch
            read += tokens
            progress.update(tokens)
        if not read:
            raise ValueError("dataset: holds no text to read.")
