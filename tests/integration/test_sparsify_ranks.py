"""Training on two processes agrees with training in one that sees the same global batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.train_on_ranks import CASES, STEPS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("train_on_ranks.py"))


@pytest.fixture(scope="module")
def outputs(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train each case in one process and in two; return the folder with the weights."""
    output = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, SCRIPT, str(tiny_model_folder), str(output), *CASES]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return output


def load(outputs: Path, case: str, rank: int, ranks: int) -> dict[str, Any]:
    return torch.load(outputs / f"{case}_{rank}_of_{ranks}.pt")


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for hookpoint, weights in ours.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(
                tensor, theirs[hookpoint][name], atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"distributed"}))
def test_ranks_end_with_identical_weights_and_every_parameter_learns(case: str, outputs: Path):
    first, second = (load(outputs, case, rank, 2) for rank in range(2))
    assert_same(first["weights"], second["weights"], tolerance=0)
    for run in (first, second):
        buffers = {"firing_rates", "flip_price"}
        parameters = sum(len(weights.keys() - buffers) for weights in run["weights"].values())
        assert len(run["gradients"]) == parameters
        assert set(run["gradients"].values()) == {STEPS}


# Gumbel is left out, because two processes draw other noise than one.
@pytest.mark.parametrize("case", ["topk_binary", "groupmax_binary", "binary", "refined"])
def test_two_ranks_agree_with_one_process_on_the_same_global_batches(case: str, outputs: Path):
    one, two = (load(outputs, case, 0, ranks)["weights"] for ranks in (1, 2))
    assert_same(two, one, tolerance=1e-5)


def test_distributed_modules_agree_with_one_process(outputs: Path):
    one = load(outputs, "distributed", 0, 1)
    parts = [load(outputs, "distributed", rank, 2) for rank in range(2)]
    assert_same({**parts[0]["weights"], **parts[1]["weights"]}, one["weights"], tolerance=1e-5)
    gradients = {**parts[0]["gradients"], **parts[1]["gradients"]}
    assert gradients == one["gradients"]
