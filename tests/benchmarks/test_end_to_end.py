"""The times of whole runs and of readers: every part is counted once, in every run."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore
from sparsify import Trainer

from benchmarks import end_to_end, readers
from benchmarks.end_to_end import MODEL, PARTS, SAVING, STEP, STORE, TOKENISING, Size
from benchmarks.parts_of_time import PartsOfTime
from sae_binary_ext.measure.candidates import OpenedModel
from tests.integration.compare_helpers import save_coders
from tests.small_models import save_llama

TINY = Size(tokens=512, batch=128, context=16, layer=1, width=16, latents=32, k=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_llama(folder, layers=2)
    return folder


def texts(number: int) -> list[str]:
    drawn = torch.randint(2, 60, (number, 50)).tolist()
    return [" ".join(f"w{word}" for word in words) for words in drawn]


class Clock:
    """A clock that only `wait` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Worker:
    """A method that calls another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def outer(self) -> None:
        self._clock.wait(2)
        self.inner()
        self._clock.wait(1)

    def inner(self) -> None:
        self._clock.wait(5)


def test_time_counts_for_the_innermost_part():
    clock = Clock()
    parts, worker = PartsOfTime(lambda: clock.now), Worker(clock)
    before = dict(Worker.__dict__)

    def items() -> Iterator[int]:
        for number in range(2):
            clock.wait(10)
            yield number

    with parts.part("rest"):
        with parts.wrapped("outer", (Worker, "outer")), parts.wrapped("inner", (worker, "inner")):
            worker.outer()
            clock.wait(0.5)
        for _ in parts.iterating("items", items()):
            clock.wait(0.25)
    worker.outer()
    assert parts.seconds == {"rest": 1, "outer": 3, "inner": 5, "items": 20}
    assert dict(Worker.__dict__) == before
    assert "inner" not in vars(worker)


@pytest.mark.integration
def test_each_run_has_all_its_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        end_to_end, "read_wikipedia_sample", lambda: (("title", text) for text in texts(200))
    )
    before = ActivationsStore.get_batch_tokens, ActivationsStore.__next__, Trainer.save
    found = list(end_to_end.runs(TINY, folder, tmp_path))
    assert before == (ActivationsStore.get_batch_tokens, ActivationsStore.__next__, Trainer.save)
    assert len({run.name for run in found}) == 7
    for run in found:
        assert set(run.seconds) <= set(PARTS)
        assert all(run.seconds[part] > 0 for part in (TOKENISING, MODEL, STEP, SAVING))
        assert ("sparsify" in run.name) == (STORE not in run.seconds)
        assert 0 < run.ours < 1
        assert len(run.cells()) == len(end_to_end.COLUMNS)


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_reader_is_at_most_as_fast_as_the_forward_pass(
    precision: str, folder: Path, tmp_path: Path
):
    save_coders(tmp_path, folder)
    text = tmp_path / "text.parquet"
    Dataset.from_dict({"text": texts(100)}).to_parquet(text)
    coders = [str(tmp_path / name) for name in ("binary", "stock")]
    forward = OpenedModel.forward
    for name, run in readers.readers_of(coders, text, tmp_path, 2000, precision).items():
        row = readers.row_of(name, run, time.perf_counter)
        assert len(row) == len(readers.COLUMNS)
        assert 0 < float(row[4].strip("*")) <= 1
    assert OpenedModel.forward is forward
