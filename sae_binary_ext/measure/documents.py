"""Reads documents from any source, cuts them into rows of tokens, and bootstraps intervals.

Intervals come from a bootstrap that resamples documents, because tokens of one document resemble
each other. In the Poisson bootstrap, each document counts a Poisson(1) number of times in each
replicate. So each bootstrap replicate needs only one running sum.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from datasets import DatasetDict, load_dataset, load_from_disk
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.bundled.wikipedia import read_held_out_articles, read_wikipedia_sample
from sae_binary_ext.settings import TextSource

REPLICATES, CONFIDENCE = 200, 0.95
HELD_OUT_ARTICLES = "Wikipedia sample of gensim, articles not trained on"
ALL_ARTICLES = "Wikipedia sample of gensim, all articles"
TEXT_COLUMN, DEFAULT_SPLIT = "text", "train"
# A folder with one of these files was written by save_to_disk of a Dataset or a DatasetDict.
SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
# Loader in the package `datasets` for each file ending.
LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}


@dataclass(frozen=True)
class TextBatch:
    """Rows of tokens, int64 [rows, context]. No row holds text of two documents.

    Short rows are padded at the right; `lengths`, int64 [rows], do not count padding. `documents`
    has the number of each row's document.
    """

    tokens: Tensor
    lengths: Tensor
    documents: list[int]

    def positions(self, first: int) -> Tensor:
        """bool [rows, context], true for tokens (not padding) from the position `first` on."""
        position = torch.arange(self.tokens.shape[1])
        return (position >= first) & (position < self.lengths[:, None])


def padded(rows: list[list[int]], documents: list[int], width: int) -> TextBatch:
    """A batch made of rows of token ids, each padded to `width` tokens."""
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return TextBatch(tokens, torch.tensor(list(map(len, rows))), documents)


def read_documents(source: TextSource | str | None) -> Iterator[str]:
    """Read the texts of a dataset one by one.

    Without a dataset, read the articles of the bundled Wikipedia sample that the demo does not
    train on. Raises ValueError if the dataset, split or column does not exist.
    """
    source = source if isinstance(source, TextSource) else TextSource(source)
    if source.dataset is None:
        yield from read_held_out_articles()
        return
    column: str | None = None
    for entry in read_entries(source):
        column = column or text_column(source, entry)
        yield entry[column]


def read_entries(source: TextSource) -> Iterator[dict[str, Any]]:
    """Read the entries of a dataset one by one, with all columns; ValueError without a dataset."""
    if source.dataset is None:
        raise ValueError("dataset=None: the embedded articles have no columns. Name a dataset.")
    yield from open_dataset(source.dataset, source.split)


def read_all_documents(source: TextSource | str | None) -> Iterator[str]:
    """Read texts as read_documents does; without a dataset, read all bundled Wikipedia articles."""
    if (source.dataset if isinstance(source, TextSource) else source) is None:
        return (text for _, text in read_wikipedia_sample())
    return read_documents(source)


def open_dataset(source: str, split: str | None = None) -> Iterable[dict[str, Any]]:
    """Open a dataset with the package datasets; source and split as in TextSource."""
    path = Path(source)
    if path.is_dir() and any((path / name).is_file() for name in SAVED_BY_DATASETS):
        return _saved_dataset(source, split)
    if not path.exists():
        return _load(source, source, split)
    files = [path] if path.is_file() else sorted(path.rglob("*.*"))
    endings = {file.suffix for file in files} & LOADERS.keys()
    if len(endings) != 1:
        raise ValueError(
            f"dataset={source!r}: holds files of {sorted(endings) or 'no known kind'}; give files "
            f"of one kind, of {sorted(LOADERS)}."
        )
    ending = endings.pop()
    options: dict[str, Any] = {"sample_by": "document"} if ending == ".txt" else {}
    if split is None or path.is_file():
        options["data_files"] = [str(file) for file in files if file.suffix == ending]
    else:
        # The package `datasets` finds the splits by the names of the files.
        options["data_dir"] = source
    return _load(source, LOADERS[ending], split, **options)


def _saved_dataset(source: str, split: str | None) -> Iterable[dict[str, Any]]:
    """Open a folder that save_to_disk wrote: one dataset, or one dataset for each split."""
    found: Any = load_from_disk(source)
    if not isinstance(found, DatasetDict):
        if split not in (None, str(found.split)):
            raise ValueError(
                f"split={split!r}: {source!r} is one dataset without splits. Leave split out."
            )
        return found
    chosen = split or (next(iter(found)) if len(found) == 1 else DEFAULT_SPLIT)
    if chosen not in found:
        raise ValueError(
            f"split={chosen!r}: {source!r} has the splits {sorted(map(str, found))}. Name one with "
            "--split."
        )
    return cast(Any, found[chosen])


def _load(source: str, loader: str, split: str | None, **options: Any) -> Iterable[dict[str, Any]]:
    chosen = split or DEFAULT_SPLIT
    try:
        return cast(Any, load_dataset(loader, split=chosen, streaming=True, **options))
    except (OSError, ValueError) as error:
        named, hint = "", ""
        if "split" in str(error):
            named, hint = f", split={chosen!r}", " Name one with --split."
        raise ValueError(f"dataset={source!r}{named}: cannot be read: {error}{hint}") from error


def sizes_and_times(source: str) -> str:
    """Sizes and times of the files in a folder or of a file; empty for a name on the Hub."""
    path = Path(source)
    files = sorted([path, *path.rglob("*")] if path.exists() else [])
    return "".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def text_column(source: TextSource, entry: Mapping[str, Any]) -> str:
    """Find the column of texts in an entry; raise ValueError if none or several fit."""
    texts = [name for name, value in entry.items() if isinstance(value, str)]
    wanted = source.text_column or TEXT_COLUMN
    if wanted in texts:
        return wanted
    if source.text_column is not None:
        raise ValueError(
            f"text_column={wanted!r}: dataset {source.dataset!r} has no such column of texts. Its "
            f"columns are {sorted(entry)}; those of texts are {texts}."
        )
    if len(texts) != 1:
        raise ValueError(
            f"dataset={source.dataset!r}: has no column {TEXT_COLUMN!r}, and it is not clear which "
            f"of {sorted(entry)} holds the texts. Name it with --text_column."
        )
    return texts[0]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """Make a function that gives the text of a token id."""

    @cache
    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    return text


def cut_rows(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, context_size: int, rows: int
) -> Iterator[TextBatch]:
    """Cut documents into batches of at most `rows` rows, of at most context_size tokens each.

    Each row begins with the tokenizer's BOS token, if it has one.
    """
    start = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
    width = context_size - len(start)

    def each() -> Iterator[tuple[int, list[int]]]:
        for number, text in enumerate(documents):
            # verbose=False, because the tokenizer would warn of texts longer than the model's
            # context.
            encoded = tokenizer(text, add_special_tokens=False, verbose=False)
            ids = cast(list[int], encoded["input_ids"])
            for begin in range(0, len(ids), width):
                yield number, [*start, *ids[begin : begin + width]]

    found = each()
    while batch := list(islice(found, rows)):
        yield padded([ids for _, ids in batch], [number for number, _ in batch], context_size)


class OutlyingTokens:
    """Finds tokens whose activation has a far larger norm than the median, and counts them.

    Some tokens other than the first become attention sinks ("massive activations", Sun et al.,
    arXiv 2402.17762). From layer 12 of SmolLM2 on, one token in a thousand has 190 times the
    median norm. Ten of 20,000 tokens hold four fifths of the variance there.

    `limit` is the largest norm kept, in medians of the first batch; inf keeps all tokens.
    `left_out` counts the tokens left out since `start`. `medians` has the median norm of each hook.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.start()

    def start(self, medians: Mapping[str, float] | None = None) -> None:
        """Begin another reading: forget the count, and take the medians of an earlier reading."""
        self.medians: dict[str, float] = dict(medians or {})
        self.left_out = 0

    def within(self, found: Mapping[str, Tensor], where: Tensor) -> Tensor:
        """bool [rows, context]: positions of `where` whose norm is within the limit at all hooks.

        `found` has the activations [rows, context, width] of each hook.
        """
        if self._limit == math.inf or not where.any():
            return where
        left = where
        for hook, activations in found.items():
            norms = activations.float().norm(dim=-1).cpu()
            # The first batch sets the limit, so that reading more text changes no earlier token.
            median = self.medians.setdefault(hook, norms[where].median().item())
            left = left & (norms <= self._limit * median)
        self.left_out += int((where & ~left).sum())
        return left


@dataclass(frozen=True)
class Estimate:
    """A figure over all documents, with a 95% interval (the middle 95% of replicates).

    The ends are NaN if there is only one document.
    """

    value: float
    low: float
    high: float


def document_weights(documents: list[int]) -> Tensor:
    """Weights of rows: 1 in the estimate, and in each replicate the draws of the row's document.

    Returns float64 [rows, 1 + REPLICATES]. Rows of the same document have equal weights.
    """
    once = torch.ones(REPLICATES, dtype=torch.float64)
    seeded = (torch.Generator().manual_seed(document) for document in documents)
    draws = torch.stack([torch.poisson(once, generator) for generator in seeded])
    return pad(draws, (1, 0), value=1.0)


class WeightedSums(nn.Module):
    """Sums over rows, for all documents and each replicate. Its state_dict can be saved.

    Buffer: sums, float64 [1 + REPLICATES, width].
    """

    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(1 + REPLICATES, width, dtype=torch.float64))

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Count rows [rows, width] with weights [rows, 1 + REPLICATES] of document_weights."""
        self.sums += weights.T @ rows.to("cpu", torch.float64)


def resampled(number: int) -> Tensor:
    """int64 [1 + REPLICATES, number]: indices in order, then drawn with replacement (seed 0)."""
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(number, (REPLICATES, number), generator=generator)
    return torch.cat([torch.arange(number)[None], again])


def estimate_of(figures: Tensor) -> Estimate:
    """The estimate from [1 + REPLICATES] figures; the first figure is for all documents."""
    value, replicates = figures[0].item(), figures[1:]
    # A replicate without documents gives NaN and is left out.
    drawn = replicates[replicates.isfinite()]
    # If there is only one document, its replicates differ by rounding alone.
    if not len(drawn) or drawn.isclose(drawn[0], rtol=1e-6, atol=0).all():
        return Estimate(value, float("nan"), float("nan"))
    outside = (1 - CONFIDENCE) / 2
    ends = drawn.quantile(torch.tensor([outside, 1 - outside], dtype=drawn.dtype))
    return Estimate(value, *ends.tolist())
