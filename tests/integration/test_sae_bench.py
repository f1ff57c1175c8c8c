"""sae-bench, which needs older packages than we do, reads the stock form of a binary coder."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from sae_binary_ext.checkpoints import convert
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.documents import python_blocks
from tests.small_models import VOCABULARY

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-sae-bench" / "bin" / "python"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment of make test-sae-bench"),
]


def test_core_evaluation_takes_the_stock_form(
    tiny_gpt2_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    # TransformerLens loads models by name. In the folder above, the model's path is its name.
    folder = tiny_gpt2_folder.parent
    config = BinarySAEConfig(d_in=16, d_sae=40, selection="threshold")
    config.metadata.model_name = "gpt2"
    config.metadata.hook_name = "blocks.1.hook_resid_pre"
    config.metadata.prepend_bos = True
    coder = BinarySAE(config)
    with torch.no_grad():
        coder.W_dec.mul_(3)
    coder.save_model(tmp_path / "coder")
    convert(str(tmp_path / "coder"), folder / "stock", host="stock")

    (block,) = [block.code for block in python_blocks() if "sae_bench" in block.code]
    assert "sae_binary_ext" not in block
    assert '"cpu"' in block
    small = block.replace('"cpu"', f'"cpu", dataset="{tiny_dataset}", context_size=16')
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    # jaxtyping refuses the sizes of so small a model.
    environment |= {"JAXTYPING_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, "-c", small], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = (folder / "eval_results").glob("stock_*.json")
    metrics = json.loads(result.read_text())["eval_result_metrics"]
    sparsity, quality = metrics["sparsity"], metrics["reconstruction_quality"]
    assert sparsity["l1"] == sparsity["l0"]  # each value is 1
    assert quality["explained_variance"] < 1
    # sae-bench reads random words in rows of 16 tokens, of which the first is special.
    tokens = torch.randint(2, VOCABULARY, (400, 16))
    tokens[:, 0] = 0
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tiny_gpt2_folder)(tokens, output_hidden_states=True)
        expected = coder.encode(hidden.hidden_states[1][:, 1:]).sum(-1).mean().item()
    assert sparsity["l0"] == pytest.approx(expected, rel=0.05)
