"""Labels are read in their forms, and name the rows of a text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_binary_ext.commands.rules import RulesConfig
from sae_binary_ext.commands.rules.config import FORMS, Label, read_label
from sae_binary_ext.commands.rules.labelled_text import LabelledText, _next_tokens, column_values
from sae_binary_ext.measure.documents import padded


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("token:^ the$", Label("token:^ the$", "token", "^ the$")),
        ("next:a:b=c", Label("next:a:b=c", "next", "a:b=c")),
        ("column:topic=a=b", Label("column:topic=a=b", "column", "topic", "a=b")),
        ("column:topic=", Label("column:topic=", "column", "topic", "")),
        ("task:51_just_is", Label("task:51_just_is", "task", "51_just_is")),
        ("tasks:20", Label("tasks:20", "tasks", "20")),
    ],
)
def test_labels_of_each_form(text: str, label: Label):
    assert read_label(text) == label


@pytest.mark.parametrize(
    "text", ["the", "token:", "word:the", "column:topic", "column:=x", "tasks:few", "tasks:0"]
)
def test_other_forms_are_refused_with_the_known_ones(text: str):
    with pytest.raises(ValueError, match=r"labels=.*give labels of the forms") as refused:
        RulesConfig(labels=[text])
    assert FORMS in str(refused.value)


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"labels='token:\(': .* not a regular expression"):
        RulesConfig(labels=["token:("])


def test_a_column_needs_a_dataset():
    with pytest.raises(ValueError, match="Name a dataset too"):
        RulesConfig(labels=["column:topic=sport"])
    assert RulesConfig(labels=["column:a=b"] * 2, dataset="texts").read_labels() == [
        read_label("column:a=b")
    ]


@pytest.mark.parametrize("field", ["clauses", "literals"])
def test_a_rule_has_at_least_one_part(field: str):
    fields: Any = {field: 0}
    with pytest.raises(ValueError, match=f"{field}=0: give a number of at least 1"):
        RulesConfig(**fields)


def text(tokens: list[int], following: list[int], documents: list[int]) -> LabelledText:
    return LabelledText(
        torch.tensor(tokens), torch.tensor(following), torch.tensor(documents), {}, {}, "w{}".format
    )


def test_tokens_and_next_tokens_are_labelled_by_their_texts():
    read = text([7, 8, 7, 17, 7, 8], [8, 7, -1, 7, 8, -1], [0, 0, 0, 1, 1, 1])
    chosen, rows = read.labelled(read_label("token:w.*7"), RulesConfig())
    assert chosen is not None
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.labels.tolist() == [True, False, True, True, True, False]
    chosen, rows = read.labelled(read_label("next:^w7$"), RulesConfig())
    assert chosen is not None
    # The last token of each document has no next one.
    assert chosen.tolist() == [0, 1, 3, 4]
    assert rows.labels.tolist() == [False, True, True, False]
    assert rows.groups.tolist() == [0, 0, 1, 1]


def test_a_label_that_one_half_lacks_is_refused():
    read = text([7, 8, 9, 8], [-1] * 4, [0, 0, 1, 1])
    for label in ("token:w7", "token:w", "token:absent"):
        with pytest.raises(ValueError, match="of 4 rows have the label"):
            read.labelled(read_label(label), RulesConfig())


def test_the_next_token_is_of_the_same_row():
    batch: Any = type("Batch", (), {"text": padded([[1, 2, 3], [4, 5]], [0, 0], 4)})
    assert _next_tokens(batch).tolist() == [[2, 3, -1, -1], [5, -1, -1, -1]]


def test_columns_are_read_from_the_dataset(tmp_path: Path):
    entries = {"text": ["a", "b", "c"], "topic": ["sport", "art", "sport"], "year": [1, 2, 3]}
    Dataset.from_dict(entries).to_parquet(tmp_path / "train.parquet")

    def values(label: str, number: int) -> list[str]:
        config = RulesConfig(labels=[label], dataset=str(tmp_path))
        return column_values(config, read_label(label), number)

    assert values("column:topic=sport", 2) == ["sport", "art"]
    assert values("column:year=2", 3) == ["1", "2", "3"]
    with pytest.raises(ValueError, match=r"no column 'kind'. Its columns are \['text', 'topic'"):
        values("column:kind=x", 1)
    config = RulesConfig(labels=["column:year=2", "token:b"], dataset=str(tmp_path))
    read = text([7, 8, 7], [-1] * 3, [0, 1, 2])
    with pytest.raises(ValueError, match="1 of 3 rows have the label"):
        read.labelled(config.read_labels()[0], config)
