import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from sae_binary_ext.demo.text import read_wikipedia_sample

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.integration


def test_train_in_saelens(smollm2_folder: Path, tmp_path: Path):
    texts = [text for _, text in read_wikipedia_sample()][:10]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "text" / "train.parquet")
    script = EXAMPLES / "train_in_saelens.py"
    result = subprocess.run(
        [sys.executable, str(script), str(smollm2_folder), str(tmp_path / "text")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "binary coder with 2304 latents" in result.stdout
