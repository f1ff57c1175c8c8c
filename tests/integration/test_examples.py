import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.integration


@pytest.fixture
def run_example(
    smollm2_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run an example with SmolLM2, a folder of text and more arguments; return the printed text."""

    def run(name: str, *more: str) -> str:
        # Scripts run in this process, because a new process would take long to import the hosts.
        texts = [text[:10_000] for _, text in read_wikipedia_sample()][:40]
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "text" / "train.parquet")
        monkeypatch.chdir(tmp_path)
        script, text = str(EXAMPLES / name), str(tmp_path / "text")
        monkeypatch.setattr(sys, "argv", [script, str(smollm2_folder), text, *more])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_train_in_saelens(run_example: Callable[..., str]):
    assert "binary coder with 2304 latents" in run_example("train_in_saelens.py")


def test_train_in_sparsify(run_example: Callable[..., str]):
    printed = run_example("train_in_sparsify.py")
    assert "BinarySparseCoder with 4608 latents, activation topk_binary" in printed


def test_train_transcoders(run_example: Callable[..., str]):
    # With layer 2, most of the model's forward pass is left out.
    printed = run_example("train_transcoders.py", "2")
    header, *rows = printed.splitlines()[-3:]
    assert header.split()[:2] == ["transcoder", "FVU"]
    assert [row.split()[0] for row in rows] == ["binary", "continuous"]
    assert all(0 < float(row.split()[1]) < 1 for row in rows)


@pytest.fixture
def coder(smollm2_folder: Path, tmp_path: Path) -> Path:
    """Folder of an untrained coder of layer 2. A low layer leaves out most of the forward pass."""
    torch.manual_seed(0)
    config = BinarySAEConfig(d_in=576, d_sae=200, selection="threshold")
    config.metadata.hook_name = "blocks.2.hook_resid_pre"
    config.metadata.model_name = str(smollm2_folder)
    BinarySAE(config).save_model(tmp_path / "coder")
    return tmp_path / "coder"


def test_measure_codes(run_example: Callable[..., str], coder: Path):
    printed = run_example("measure_codes.py", str(coder))
    for heading in ("Bits a token", "What changes raise", "Bits a vector"):
        assert heading in printed
    assert re.search(r"coder\.codes: \d{4} hidden states as .*, read back", printed)


def test_search_codes(run_example: Callable[..., str], coder: Path):
    printed = run_example("search_codes.py", str(coder))
    for heading in ("bits a token", "windows of 16 tokens", "times as often", "a code like that"):
        assert heading in printed
    assert printed.count("«") > 3


def test_study_coders(run_example: Callable[..., str], coder: Path):
    printed = run_example("study_coders.py", str(coder))
    for heading in ("levels", "surrogate", "Bits a hidden state"):
        assert heading in printed
    folder = coder.parent
    for name in ("transfer", "multi-bit", "gradients", "profile"):
        assert list((folder / name).glob("*.html")), name


def test_steer(run_example: Callable[..., str], coder: Path):
    first, on, flipped, last = run_example("steer.py", str(coder), "5").splitlines()[-4:]
    assert first.removeprefix("as it is: ") == last.removeprefix("as it was: ")
    assert on.startswith("latent 5 on: ")
    assert flipped.startswith("latent 5 flipped where !6: ")


def test_find_rules(run_example: Callable[..., str], coder: Path):
    printed = run_example("find_rules.py", str(coder))
    for heading in ("AUC, mean of all labels", "Latents that imply others"):
        assert heading in printed
    assert len(re.findall(r"holds for \d+ of \d+ tokens", printed)) == 2
    assert (coder.parent / "rules" / "rules.html").is_file()
