from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.measure.documents import cut_rows, read_all_documents, read_documents
from sae_binary_ext.settings import TextSource

TEXTS = ["w1 w2 w3 w4 w5", "w6", "", "w7 w8 w9 w1 w2 w3"]


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0} | {f"w{i}": i for i in range(1, 10)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def test_rows_are_of_one_document_each_and_begin_alike():
    batches = list(cut_rows(TEXTS, tokenizer(bos_token="<s>"), context_size=4, rows=3))
    assert [batch.tokens.tolist() for batch in batches] == [
        [[0, 1, 2, 3], [0, 4, 5, 0], [0, 6, 0, 0]],
        [[0, 7, 8, 9], [0, 1, 2, 3]],
    ]
    assert [batch.lengths.tolist() for batch in batches] == [[4, 3, 2], [4, 4]]
    assert [batch.documents for batch in batches] == [[0, 0, 1], [3, 3]]
    assert batches[0].positions(1).int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]


def test_a_tokenizer_without_a_first_token_adds_none():
    (batch,) = cut_rows(TEXTS[:1], tokenizer(), context_size=4, rows=3)
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]


def write_texts(folder: Path) -> Path:
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text + "\nmore")
    return folder


def write_json_lines(folder: Path) -> Path:
    Dataset.from_dict({"text": TEXTS, "title": TEXTS}).to_json(folder / "a.jsonl")
    return folder / "a.jsonl"


def write_parquet(folder: Path) -> Path:
    Dataset.from_dict({"body": TEXTS, "number": [1, 2, 3, 4]}).to_parquet(folder / "a.parquet")
    return folder


def write_to_disk(folder: Path) -> Path:
    Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_texts, [text + "\nmore" for text in TEXTS]),
        (write_json_lines, TEXTS),
        (write_parquet, TEXTS),
        (write_to_disk, TEXTS),
    ],
)
def test_documents_of_files(write: Callable[[Path], Path], expected: list[str], tmp_path: Path):
    assert list(read_documents(str(write(tmp_path)))) == expected


def test_the_default_text_is_what_the_demo_does_not_train_on_or_all_of_it():
    articles = [text for _, text in islice(read_wikipedia_sample(), 60)]
    assert list(islice(read_documents(None), 6)) == articles[9::10]
    assert list(islice(read_all_documents(None), 60)) == articles


def test_text_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"files of no known kind; give files of one kind"):
        next(read_documents(str(tmp_path)))
    (tmp_path / "a.txt").write_text("a")
    Dataset.from_dict({"one": TEXTS, "two": TEXTS}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"'\.parquet', '\.txt'\]; give files of one kind"):
        next(read_documents(str(tmp_path)))
    with pytest.raises(ValueError, match=r"no column 'text'.*\['one', 'two'\]"):
        next(read_documents(str(tmp_path / "b.parquet")))
    with pytest.raises(ValueError, match="dataset='/nowhere/at/all'"):
        next(read_documents("/nowhere/at/all"))


SPLITS = {"train": ["w1", "w2"], "test": ["w3"]}


def save_splits(folder: Path, **splits: list[str]) -> str:
    """Write a folder with DatasetDict.save_to_disk, with two columns of strings."""
    columns = {name: {"body": texts, "title": texts[::-1]} for name, texts in splits.items()}
    datasets = {name: Dataset.from_dict(entries) for name, entries in columns.items()}
    DatasetDict(datasets).save_to_disk(folder)
    return str(folder)


def test_a_split_and_a_column_are_chosen_by_name(tmp_path: Path):
    folder = save_splits(tmp_path / "both", **SPLITS)
    for split, expected in ((None, SPLITS["train"]), *SPLITS.items()):
        for column in ("body", "title"):
            found = list(read_documents(TextSource(folder, split, column)))
            assert found == (expected if column == "body" else expected[::-1])
            assert list(read_all_documents(TextSource(folder, split, column))) == found
    # A dataset with a single split needs no split name.
    alone = save_splits(tmp_path / "alone", validation=["w4"])
    assert list(read_documents(TextSource(alone, text_column="body"))) == ["w4"]


def test_splits_of_a_folder_of_files_are_read_off_their_names(tmp_path: Path):
    for name, texts in SPLITS.items():
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{name}.parquet")
    for name, texts in SPLITS.items():
        assert list(read_documents(TextSource(str(tmp_path), name))) == texts


def test_splits_and_columns_that_are_not_there_are_named(tmp_path: Path):
    folder = save_splits(tmp_path / "both", dev=["w1"], test=["w3"])
    for split, column, message in (
        (None, "body", r"split='train'.*has the splits \['dev', 'test'\].*--split"),
        ("nowhere", "body", r"split='nowhere'.*\['dev', 'test'\]"),
        ("dev", None, r"which of \['body', 'title'\] holds the texts.*--text_column"),
        ("dev", "text", r"text_column='text'.*\['body', 'title'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            next(read_documents(TextSource(folder, split, column)))
    Dataset.from_dict({"text": ["w1"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"split='dev'.*one dataset without splits"):
        next(read_documents(TextSource(str(tmp_path / "one"), "dev")))
    Dataset.from_dict({"text": ["w1"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"split='dev': cannot be read: .*train.*--split"):
        next(read_documents(TextSource(str(tmp_path / "a.parquet"), "dev")))
    with pytest.raises(ValueError, match=r"split='dev'.*embedded articles.*Name a dataset"):
        TextSource(None, "dev")
