"""Divides a text into rows to train on and rows of documents that are held out."""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sae_binary_ext.bundled.wikipedia import HELD_OUT_EVERY, is_held_out
from sae_binary_ext.measure.documents import TextBatch, cut_rows
from sae_binary_ext.measure.reading import OpenedModel

logger = logging.getLogger(__name__)
# Held-out rows come from at least so many documents, if the text has them.
HELD_OUT_DOCUMENTS = 10


@dataclass(frozen=True)
class Rows:
    """Rows of text, each a TextBatch of one row. No document has rows in both lists."""

    training: list[TextBatch]
    held_out: list[TextBatch]


def read_rows(opened: OpenedModel, tokens: int, held_out_tokens: int, seed: int) -> Rows:
    """Rows to train on, shuffled with `seed`, and rows of every tenth document, which are held out.

    tokens and held_out_tokens count the positions that count. A document that has given a tenth of
    the held-out tokens gives no more, if the text has enough others: intervals need documents.
    ValueError if no document is held out.
    """
    training, held_out = _Part(tokens), _Part(held_out_tokens, held_out_tokens / HELD_OUT_DOCUMENTS)
    cut = cut_rows(opened.documents(), opened.tokenizer, opened.context_size, 1)
    for row in tqdm(cut, "Reading rows", unit="rows", leave=False):
        # Of the bundled articles, these are the ones that the demo's coders have never seen.
        part = held_out if is_held_out(row.documents[0]) else training
        part.add(row, int(row.positions(opened.first_position).sum()))
        if training.is_full and held_out.is_full:
            break
    held_out.fill_up()
    if not (training.rows and held_out.rows):
        raise ValueError(
            f"dataset: every {HELD_OUT_EVERY}th document is held out, and the text read ends "
            f"before number {HELD_OUT_EVERY}. Give a text of more documents."
        )
    for part, name in ((training, "tokens"), (held_out, "held_out_tokens")):
        if not part.is_full:
            logger.warning("%s=%d: the text has %d.", name, part.wanted, part.tokens)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(training.rows), generator=generator).tolist()
    return Rows([training.rows[place] for place in order], held_out.rows)


class _Part:
    """Rows of one part of a text, until they have as many tokens as wanted.

    A document that has given `most_of_document` tokens gives no more, unless the text ends first.
    """

    def __init__(self, wanted: int, most_of_document: float = math.inf) -> None:
        self.wanted, self.tokens = wanted, 0
        self.rows: list[TextBatch] = []
        self._most = most_of_document
        self._of_document: Counter[int] = Counter()
        self._spare: list[tuple[TextBatch, int]] = []
        self._spare_tokens = 0

    @property
    def is_full(self) -> bool:
        return self.tokens >= self.wanted

    def add(self, row: TextBatch, tokens: int) -> None:
        """Take a row of so many tokens, or keep it in case the text ends too early."""
        if self.is_full:
            return
        if self._of_document[row.documents[0]] < self._most:
            self._take(row, tokens)
        elif self.tokens + self._spare_tokens < self.wanted:
            self._spare.append((row, tokens))
            self._spare_tokens += tokens

    def fill_up(self) -> None:
        """Take the rows that were kept, as far as they are wanted."""
        for row, tokens in self._spare:
            if not self.is_full:
                self._take(row, tokens)

    def _take(self, row: TextBatch, tokens: int) -> None:
        self.rows.append(row)
        self.tokens += tokens
        self._of_document[row.documents[0]] += tokens


def joined(rows: list[TextBatch], size: int) -> Iterator[TextBatch]:
    """Batches of `size` rows; the last may have fewer."""
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        tokens, lengths = (torch.cat([getattr(row, name) for row in part]) for name in _TENSORS)
        yield TextBatch(tokens, lengths, [row.documents[0] for row in part])


_TENSORS = ("tokens", "lengths")
