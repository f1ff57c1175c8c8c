"""Text to measure on: documents of any source, cut into rows of tokens."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from datasets import load_dataset, load_from_disk
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.demo.text import read_held_out_articles, read_wikipedia_sample

HELD_OUT_ARTICLES = "Wikipedia sample of gensim, articles not trained on"
ALL_ARTICLES = "Wikipedia sample of gensim, all articles"
TEXT_COLUMN = "text"
# Of each file ending, the loader of datasets that reads it.
LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}


@dataclass(frozen=True)
class TextBatch:
    """Rows of tokens, no row of two documents.

    Attributes:
        tokens: int64 [rows, context], rows that end early filled up at the right, which a causal
            model does not see from the left.
        lengths: int64 [rows], tokens of each row.
        documents: of each row, the number of its document.
    """

    tokens: Tensor
    lengths: Tensor
    documents: list[int]

    def positions(self, first: int) -> Tensor:
        """bool [rows, context]: tokens of the text, from this position on."""
        position = torch.arange(self.tokens.shape[1])
        return (position >= first) & (position < self.lengths[:, None])


def read_documents(source: str | None) -> Iterator[str]:
    """Texts, one by one.

    Args:
        source: a Hub dataset's id (its split "train", as a stream), a file (.txt, each one
            document, .parquet, .json, .jsonl, .csv), a folder of such files or one written by
            datasets' save_to_disk; None for those articles of the embedded Wikipedia sample that
            the demo does not train on.

    Raises:
        ValueError: there is nothing of the kind, or it has no column of texts.
    """
    if source is None:
        yield from read_held_out_articles()
        return
    dataset = _open(source)
    column: str | None = None
    for entry in dataset:
        column = column or _text_column(source, cast(dict[str, Any], entry))
        yield cast(dict[str, Any], entry)[column]


def read_all_documents(source: str | None) -> Iterator[str]:
    """Texts, as read_documents gives them; None for all articles of the embedded sample."""
    if source is None:
        return (text for _, text in read_wikipedia_sample())
    return read_documents(source)


def _open(source: str) -> Iterable[Any]:
    path = Path(source)
    if path.is_dir() and (path / "state.json").is_file():
        return cast(Iterable[Any], load_from_disk(source))
    if not path.exists():
        return _load(source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.*"))
    endings = {file.suffix for file in files} & LOADERS.keys()
    if len(endings) != 1:
        raise ValueError(
            f"dataset={source!r}: give files of one kind, of {sorted(LOADERS)}; found "
            f"{sorted(endings) or 'none of them'}."
        )
    ending = endings.pop()
    named = [str(file) for file in files if file.suffix == ending]
    options = {"sample_by": "document"} if ending == ".txt" else {}
    return _load(LOADERS[ending], data_files=named, **options)


def _load(source: str, **options: Any) -> Iterable[Any]:
    try:
        return load_dataset(source, split="train", streaming=True, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset={source!r}: cannot be read: {error}") from error


def _text_column(source: str, entry: dict[str, Any]) -> str:
    texts = [name for name, value in entry.items() if isinstance(value, str)]
    if TEXT_COLUMN in texts:
        return TEXT_COLUMN
    if len(texts) != 1:
        raise ValueError(
            f"dataset={source!r}: has no column {TEXT_COLUMN!r}, and which one holds the texts is "
            f"not clear: {sorted(entry)}."
        )
    return texts[0]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """What gives the text of a token by its id."""

    @cache
    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    return text


def cut_rows(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, context_size: int, rows: int
) -> Iterator[TextBatch]:
    """Rows of tokens, each begun with the tokenizer's token for that, where it has one.

    Args:
        documents: texts.
        tokenizer: the model's.
        context_size: tokens a row at most.
        rows: rows a batch at most.
    """
    start = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
    width = context_size - len(start)

    def each() -> Iterator[tuple[int, list[int]]]:
        for number, text in enumerate(documents):
            # verbose=False: it would warn of texts longer than the model's context.
            encoded = tokenizer(text, add_special_tokens=False, verbose=False)
            ids = cast(list[int], encoded["input_ids"])
            for begin in range(0, len(ids), width):
                yield number, [*start, *ids[begin : begin + width]]

    found = each()
    while batch := list(islice(found, rows)):
        tokens = torch.zeros(len(batch), context_size, dtype=torch.long)
        for row, (_, ids) in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
        lengths = torch.tensor([len(ids) for _, ids in batch])
        yield TextBatch(tokens, lengths, [number for number, _ in batch])
