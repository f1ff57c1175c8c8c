import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from sae_binary_ext.demo.text import read_wikipedia_sample

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.integration


def run_example(name: str, model: Path, folder: Path, *more: str) -> str:
    """What a script prints that is given a model, a folder of text and more arguments."""
    texts = [text for _, text in read_wikipedia_sample()][:10]
    Dataset.from_dict({"text": texts}).to_parquet(folder / "text" / "train.parquet")
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(model), str(folder / "text"), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_train_in_saelens(smollm2_folder: Path, tmp_path: Path):
    printed = run_example("train_in_saelens.py", smollm2_folder, tmp_path)
    assert "binary coder with 2304 latents" in printed


def test_train_in_sparsify(smollm2_folder: Path, tmp_path: Path):
    printed = run_example("train_in_sparsify.py", smollm2_folder, tmp_path)
    assert "BinarySparseCoder with 4608 latents, activation topk_binary" in printed


def test_train_transcoders(smollm2_folder: Path, tmp_path: Path):
    # Layer 2, to leave out most of the model's forward pass.
    printed = run_example("train_transcoders.py", smollm2_folder, tmp_path, "2")
    header, *rows = printed.splitlines()[-3:]
    assert header.split()[:2] == ["transcoder", "FVU"]
    assert [row.split()[0] for row in rows] == ["binary", "continuous"]
    assert all(0 < float(row.split()[1]) < 1 for row in rows)
