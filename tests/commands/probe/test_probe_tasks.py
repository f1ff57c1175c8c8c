"""Tasks have sae-probes' splits, batches hold all texts, and saved states are read again."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_probes import utils_data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_binary_ext.commands.probe import ProbeConfig, probe_tasks
from sae_binary_ext.commands.probe.probe_tasks import load_task, states_saved, task_names

NAME = "118_us_state_CA"


def test_tasks_are_spaced_over_all():
    known = utils_data.get_numbered_binary_tags()
    chosen = task_names(ProbeConfig(tasks=20))
    places = [known.index(name) for name in chosen]
    assert len(set(places)) == 20
    assert places == sorted(places)
    assert {b - a for a, b in pairwise([*places, len(known)])} == {5, 6}
    assert task_names(ProbeConfig(tasks=1000)) == known


def test_named_tasks_are_taken_once():
    assert task_names(ProbeConfig(names=[NAME, "51_just_is", NAME])) == [NAME, "51_just_is"]


def test_a_task_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"names=\['no such'\]: .* 51_just_is"):
        task_names(ProbeConfig(names=[NAME, "no such"]))


@pytest.mark.parametrize(("test_examples", "tests"), [(30, 30), (5000, 99)])
def test_a_task_has_the_split_of_sae_probes(test_examples: int, tests: int, tmp_path: Path):
    # sae-probes reads activations from a file. The number of each text stands for its activation.
    frame = utils_data.read_numbered_dataset_df(NAME)
    folder = tmp_path / "model_activations_it"
    folder.mkdir()
    torch.save(torch.arange(len(frame)), folder / f"{NAME}_hook.pt")
    training = len(frame) - 100
    train, train_labels, test, test_labels = utils_data.get_xy_traintest(
        training, NAME, "hook", "it", tmp_path
    )
    task = load_task(NAME, test_examples)
    assert task.training == training == 900
    assert len(task.texts) == len(task.labels) == training + tests
    rows = [*train.tolist(), *test.tolist()[:test_examples]]
    assert task.texts == frame["prompt"].iloc[rows].tolist()
    assert task.labels.tolist() == [*train_labels, *test_labels[:test_examples]]


def test_batches_hold_each_text_once_and_few_tokens():
    lengths = [1, 30, 5000, 2, 30, 4096, *[3] * 2000]
    rows = [[number] * length for number, length in enumerate(lengths)]
    seen: list[int] = []
    for batch in probe_tasks._batches(rows):
        assert batch.tokens.numel() <= max(probe_tasks.TOKENS_AT_ONCE, max(batch.lengths))
        assert batch.lengths.tolist() == [lengths[number] for number in batch.documents]
        assert batch.tokens[:, 0].tolist() == batch.documents
        seen += batch.documents
    assert sorted(seen) == list(range(len(rows)))


def test_saved_states_are_read_again_unless_something_changed(tmp_path: Path):
    path, read = tmp_path / "activations" / "task.safetensors", list[str]()

    def states(hooks: set[str], of: str, value: float = 0.0) -> dict[str, torch.Tensor]:
        def new() -> dict[str, torch.Tensor]:
            read.append(of)
            return {hook: torch.full((2, 3), value) for hook in hooks}

        return states_saved(path, of, hooks, new)

    states({"a", "b"}, "this", 1.0)
    assert states({"a"}, "this")["a"].eq(1.0).all()
    assert read == ["this"]
    states({"a", "c"}, "this")
    states({"a"}, "another")
    assert read == ["this", "this", "another"]
    assert [file.name for file in path.parent.iterdir()] == ["task.safetensors"]


def test_a_long_text_keeps_its_last_tokens():
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(9)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    opened: Any = SimpleNamespace(tokenizer=tokenizer, context_size=3)
    rows = probe_tasks._tokenized(opened, ["w1 w2 w3 w4", "w5", "w6 w7 w8"])
    assert rows == [[2, 3, 4], [5], [6, 7, 8]]
