"""Activations in a file are those of the model, and a file of anything else is refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from sae_binary_ext.commands import EntropyConfig
from sae_binary_ext.measure.candidates import OpenedModel, ReadBatch
from sae_binary_ext.measure.documents import OutlyingTokens
from sae_binary_ext.measure.reading import read_text
from sae_binary_ext.measure.saved_activations import read_from_file
from tests.small_models import save_tokenizer
from tests.toy_model import ToyLanguageModel

CONTEXT, FIRST = 6, 1
HOOKS = ["hook_in", "hook_out"]
WORDS = [5, 9, 3, 21, 1, 40, 7, 64]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture
def opened(tokenizer: Any) -> OpenedModel:
    """A toy model in bfloat16 that reads eight documents, 150 words in all, in 33 rows."""
    draw = torch.Generator().manual_seed(0)
    texts = [
        " ".join(f"w{word}" for word in torch.randint(2, 7, (number,), generator=draw).tolist())
        for number in WORDS
    ]
    return OpenedModel(
        [], {}, ToyLanguageModel().to(torch.bfloat16), "toy", tokenizer, "texts", lambda: texts,
        OutlyingTokens(1.1), CONTEXT, FIRST,
    )  # fmt: skip


def config_of(path: Path | None, **changes: Any) -> EntropyConfig:
    settings = {"dataset": "texts", "tokens": 100, "context_size": CONTEXT, "device": "cpu"}
    return EntropyConfig(activations=path, **settings | changes)


def read(opened: OpenedModel, path: Path | None, **changes: Any) -> list[ReadBatch]:
    return list(read_text(opened, config_of(path, **changes), more_hooks=HOOKS))


def assert_same(found: list[ReadBatch], expected: list[ReadBatch], exact: bool = True) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.text.tokens, other.text.tokens)
        assert torch.equal(one.text.lengths, other.text.lengths)
        assert one.text.documents == other.text.documents
        assert torch.equal(one.where, other.where)
        there = one.text.positions(0)
        for hook in HOOKS:
            mine, its = one.found[hook][there], other.found[hook][there]
            assert mine.dtype == its.dtype
            assert one.found[hook].shape == other.found[hook].shape
            torch.testing.assert_close(mine, its, rtol=0 if exact else 2**-11, atol=0)


def stop(opened: OpenedModel, at: int, error: BaseException) -> None:
    """Let the model raise an error in a forward pass, counted from 0."""
    model: Any = opened.model
    passes = iter(range(at + 1))

    def count(*_: Any) -> None:
        if next(passes) == at:
            raise error

    model.register_forward_pre_hook(count)


def test_a_file_has_what_a_model_of_16_bits_computes(opened: OpenedModel, tmp_path: Path):
    path = tmp_path / "new" / "own.safetensors"
    with torch.no_grad():  # float16 would round these
        opened.model.embed.weight[2] *= 1e-6  # pyright: ignore
    expected = read(opened, None)
    left_out = opened.outliers.left_out
    assert left_out > 0
    assert_same(read(opened, path), expected)
    stop(opened, 0, AssertionError("the model ran"))
    assert_same(read(opened, path), expected)
    assert opened.outliers.left_out == left_out
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_numbers_of_32_bits_are_rounded_once(opened: OpenedModel, tmp_path: Path):
    opened = replace(opened, model=opened.model.float())
    expected, written = read(opened, None), read(opened, tmp_path / "own")
    assert_same(written, expected, exact=False)
    assert not torch.equal(written[0].found["hook_in"], expected[0].found["hook_in"])
    assert_same(read(opened, tmp_path / "own"), written)


def test_the_file_is_one_of_safetensors_without_padding(opened: OpenedModel, tmp_path: Path):
    opened = replace(opened, model=opened.model.half())
    batches = read(opened, tmp_path / "own")
    found = load_file(tmp_path / "own")
    lengths = torch.cat([batch.text.lengths for batch in batches])
    assert torch.equal(found["text.lengths"], lengths.int())
    assert torch.equal(found["text.tokens"], torch.cat([b.text.tokens for b in batches]).int())
    for hook in HOOKS:
        assert found[hook].dtype == torch.float16
        whole = torch.cat([batch.found[hook][batch.text.positions(0)] for batch in batches])
        assert torch.equal(found[hook], whole)


@pytest.mark.parametrize("tokens", [1, 30, 100])
def test_the_first_tokens_of_a_file_are_a_shorter_text(
    tokens: int, opened: OpenedModel, tmp_path: Path
):
    read(opened, tmp_path / "own")
    expected = list(read_text(opened, config_of(None, tokens=tokens), more_hooks=HOOKS))
    found = list(read_text(opened, config_of(tmp_path / "own", tokens=tokens), more_hooks=HOOKS))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.found["hook_out"][one.where], other.found["hook_out"][other.where])


def test_a_text_that_has_ended_is_read_again_to_its_end(opened: OpenedModel, tmp_path: Path):
    expected = read(opened, tmp_path / "own", tokens=10_000)
    assert sum(int(batch.text.positions(FIRST).sum()) for batch in expected) == sum(WORDS)
    assert_same(read(opened, tmp_path / "own", tokens=20_000), expected)


def test_too_few_tokens_say_how_many_there_are(opened: OpenedModel, tmp_path: Path):
    batches = read(opened, tmp_path / "own", tokens=40)
    number = sum(int(batch.text.positions(FIRST).sum()) for batch in batches)
    with pytest.raises(ValueError, match=rf"tokens={number + 1}: .*Give at most {number}, or name"):
        read(opened, tmp_path / "own", tokens=number + 1)
    assert len(read(opened, tmp_path / "own", tokens=number)) == len(batches)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_a_write_that_stops_leaves_no_file(
    error: BaseException, opened: OpenedModel, tmp_path: Path
):
    stop(opened, 2, error)
    with pytest.raises(type(error)):
        read(opened, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def scale_embedding(opened: OpenedModel, words: list[int], size: float) -> OpenedModel:
    model: Any = opened.model.float()
    with torch.no_grad():
        model.embed.weight[words] *= size
    return replace(opened, model=model, outliers=OutlyingTokens(math.inf))


def test_large_values_are_stored_with_a_larger_range(opened: OpenedModel, tmp_path: Path):
    opened = scale_embedding(opened, list(range(7)), 1e6)
    found, expected = read(opened, tmp_path / "own"), read(opened, None)
    with safe_open(tmp_path / "own", framework="pt") as file:
        assert file.get_slice("hook_in").get_dtype() == "BF16"
    there = found[0].text.positions(0)
    mine, its = (batches[0].found["hook_in"][there] for batches in (found, expected))
    torch.testing.assert_close(mine, its, rtol=2**-8, atol=0)


def test_values_that_grow_too_large_are_refused(opened: OpenedModel, tmp_path: Path):
    texts = ["w2 w3 w4 " * 30, "w5 w6 " * 40]
    opened = replace(scale_embedding(opened, [5, 6], 1e6), documents=lambda: texts)
    with pytest.raises(ValueError, match=r"hook_in reach .*float16 ends at 65504.*Leave"):
        read(opened, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


OTHERS: dict[str, tuple[Callable[[OpenedModel], OpenedModel], dict[str, Any], str]] = {
    "model": (lambda own: replace(own, model_name="other"), {}, "model=toy.*has model=other"),
    "text": (
        lambda own: replace(own, text_name="others"), {"dataset": "others"},
        "dataset=texts.*has dataset=others",
    ),
    "split": (lambda own: own, {"split": "test"}, "split=None.*has split=test"),
    "column": (lambda own: own, {"text_column": "t"}, "text_column=None.*has text_column=t"),
    "rows": (
        lambda own: replace(own, context_size=5), {"context_size": 5},
        "context_size=6.*has context_size=5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_something_else_is_refused(name: str, opened: OpenedModel, tmp_path: Path):
    change, changes, message = OTHERS[name]
    read(opened, tmp_path / "own")
    with pytest.raises(ValueError, match=message + ".*or name another file"):
        read(change(opened), tmp_path / "own", **changes)
    assert read(change(opened), tmp_path / "other", **changes)


def test_a_text_that_has_changed_is_another_text(opened: OpenedModel, tmp_path: Path):
    text = tmp_path / "texts.txt"
    text.write_text("w2")
    opened = replace(opened, text_name=str(text))
    read(opened, tmp_path / "own")
    read(opened, tmp_path / "own")
    text.write_text("w2 w3")
    with pytest.raises(ValueError, match="was written with files of the dataset="):
        read(opened, tmp_path / "own")


def test_auto_takes_the_precision_of_the_file(opened: OpenedModel, tmp_path: Path):
    path = tmp_path / "own.safetensors"
    written = read(opened, path)
    low = replace(opened, bfloat16=True)
    assert_same(read(low, path, precision="auto"), written)
    with pytest.raises(ValueError, match="precision=float32, and this run has precision=bfloat16"):
        read(low, path, precision="bfloat16")


def test_a_file_without_a_precision_is_of_float32(opened: OpenedModel, tmp_path: Path):
    path = tmp_path / "own.safetensors"
    written = read(opened, path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about.pop("precision") == "float32"
    with_metadata(path, about=json.dumps(about))
    assert_same(read(opened, path), written)
    with pytest.raises(ValueError, match="precision=float32, and this run has precision=bfloat16"):
        read(replace(opened, bfloat16=True), path)


def test_hooks_that_the_file_lacks_are_named(opened: OpenedModel, tmp_path: Path):
    config = config_of(tmp_path / "own")
    list(read_text(opened, config, more_hooks=["hook_in"]))
    with pytest.raises(ValueError, match=r"has the hooks \['hook_in'\].*reads \['hook_out'\]"):
        list(read_text(opened, config, more_hooks=["hook_out"]))


def with_metadata(path: Path, **changes: Any) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | changes)


def with_tensors(path: Path, **changes: Any) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changes, path, metadata=metadata)


def long_lengths(path: Path) -> None:
    with_tensors(path, **{"text.lengths": load_file(path)["text.lengths"] + CONTEXT})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("activations " * 100),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "weights": lambda path: save_file({"W_enc": torch.zeros(2, 2)}, path),
    "no JSON": lambda path: with_metadata(path, about="{"),
    "unknown numbers": lambda path: with_metadata(path, dtypes=json.dumps({"hook_in": "load"})),
    "a missing hook": lambda path: with_metadata(path, dtypes=json.dumps({"hook_x": "float16"})),
    "fewer tokens": lambda path: with_tensors(path, hook_in=torch.zeros(3, 3).half()),
    "no vectors": lambda path: with_tensors(path, hook_in=torch.zeros(3).half()),
    "long rows": long_lengths,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, opened: OpenedModel, tmp_path: Path):
    path = tmp_path / "own"
    read(opened, path)
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=r"own: is damaged, or is no file of activations.*Delete"):
        read(opened, path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read(opened, path)


def test_without_the_setting_nothing_changes(opened: OpenedModel):
    assert read_from_file(opened, config_of(None)) is opened
