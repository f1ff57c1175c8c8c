"""Which rows of a text are trained on, and from how many documents the held-out rows come."""

import logging
import math
from collections import Counter
from typing import Any

import pytest

from sae_binary_ext.measure.documents import OutlyingTokens
from sae_binary_ext.measure.held_out_rows import HELD_OUT_DOCUMENTS, Rows, read_rows
from sae_binary_ext.measure.reading import OpenedModel
from tests.toy_model import ToyLanguageModel

CONTEXT, FIRST = 6, 1
# A row has the positions from FIRST on that count.
TOKENS_OF_ROW = CONTEXT - FIRST


class Letters:
    """A tokenizer with a token for each letter, and a token that begins a row."""

    bos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def rows_of(rows_of_documents: list[int], tokens: int, held_out_tokens: int) -> Rows:
    """Read documents of so many full rows each."""
    texts = ["a" * (number * TOKENS_OF_ROW) for number in rows_of_documents]
    tokenizer: Any = Letters()
    opened = OpenedModel(
        [], {}, ToyLanguageModel(), "toy", tokenizer, "text", lambda: iter(texts),
        OutlyingTokens(math.inf), CONTEXT, FIRST,
    )  # fmt: skip
    return read_rows(opened, tokens, held_out_tokens, seed=0)


def documents(rows: list[Any]) -> Counter[int]:
    return Counter(row.documents[0] for row in rows)


def test_held_out_rows_come_from_ten_documents():
    wanted = 20
    rows = rows_of([50] * 200, 100, wanted * TOKENS_OF_ROW)
    assert documents(rows.held_out) == dict.fromkeys(
        range(9, 100, 10), wanted // HELD_OUT_DOCUMENTS
    )
    # Training rows are taken in the order of the text.
    assert documents(rows.training) == {0: 100 // TOKENS_OF_ROW}


def test_few_documents_give_more_than_a_tenth(caplog: pytest.LogCaptureFixture):
    lengths = [1] * 30
    lengths[9], lengths[19], lengths[29] = 12, 1, 3
    rows = rows_of(lengths, 10, 10 * TOKENS_OF_ROW)
    assert documents(rows.held_out) == {9: 8, 19: 1, 29: 1}
    assert not caplog.messages


@pytest.mark.parametrize(("tokens", "held_out_tokens"), [(1000, 10), (10, 1000)])
def test_a_text_that_is_too_short_is_told(
    tokens: int, held_out_tokens: int, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        rows = rows_of([2] * 20, tokens, held_out_tokens)
    of_documents = documents(rows.training) + documents(rows.held_out)
    assert max(of_documents.values()) == 2
    name, there = ("tokens", 180) if tokens == 1000 else ("held_out_tokens", 20)
    assert caplog.messages == [f"{name}=1000: the text has {there}."]


def test_a_text_without_a_tenth_document_is_refused():
    with pytest.raises(ValueError, match=r"every 10th document is held out.*Give a text of more"):
        rows_of([2] * 9, 10, 10)


def test_no_document_is_in_both_parts():
    rows = rows_of([3] * 40, 10**6, 10**6)
    assert len(rows.training) == 36 * 3
    assert not documents(rows.training) & documents(rows.held_out)
