"""A run that is killed at random moments ends with the weights of an uninterrupted run."""

import multiprocessing
from pathlib import Path

import pytest

from tests.integration.train_until_killed import (
    Train,
    kill_and_resume,
    train_in_saelens,
    train_in_sparsify,
)

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("train", [train_in_saelens, train_in_sparsify])
def test_a_run_killed_twenty_times_ends_where_an_unbroken_one_does(
    train: Train, tiny_model_folder: Path, tmp_path: Path
):
    # A new process is spawned, because forks of this one would lack its threads.
    process = multiprocessing.get_context("spawn").Process(
        target=kill_and_resume, args=(train, tiny_model_folder, tmp_path)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
