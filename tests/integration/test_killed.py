"""Runs killed at random moments end where an unbroken one does."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.train_until_killed import (
    STEPS,
    fresh_processes,
    train_in_saelens,
    train_in_sparsify,
)

pytestmark = pytest.mark.integration

KILLS = 20


@pytest.mark.parametrize("train", [train_in_saelens, train_in_sparsify])
def test_a_run_killed_twenty_times_ends_where_an_unbroken_one_does(
    train: Callable[..., None], tiny_model_folder: Path, tmp_path: Path
):
    processes = fresh_processes()

    def start(name: str) -> tuple[Any, Any, Any]:
        steps, saves = processes.Value("i", 0), processes.Value("i", 0)
        arguments = (tiny_model_folder, tmp_path / name, steps, saves)
        process = processes.Process(target=train, args=arguments)
        process.start()
        return process, steps, saves

    unbroken, steps, _ = start("unbroken")
    unbroken.join()
    assert unbroken.exitcode == 0
    assert steps.value == STEPS

    moments = random.Random(0)
    trained = 0
    for kill in range(KILLS):
        process, steps, saves = start("broken")
        wait_for(process, steps, moments.randint(1, STEPS // KILLS))
        if kill % 2:  # in a save
            wait_for(process, saves, saves.value + 1)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        trained += steps.value
    last, steps, _ = start("broken")
    last.join()
    assert last.exitcode == 0
    # It did go on from a checkpoint, and what was lost of the others' work was trained again.
    assert steps.value < STEPS < trained + steps.value

    whole, mended = weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "broken")
    assert whole.keys() == mended.keys()
    for name, tensor in whole.items():
        assert tensor.equal(mended[name]), name


def wait_for(process: Any, count: Any, wanted: int) -> None:
    while count.value < wanted and process.is_alive():
        time.sleep(0.001)


def weights_of(folder: Path) -> dict[str, Any]:
    """The trained coders' tensors by file and name; checkpoints on the way left out."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in folder.rglob("*.safetensors")
        if "checkpoints" not in path.parts
        for name, tensor in load_file(path).items()
    }
