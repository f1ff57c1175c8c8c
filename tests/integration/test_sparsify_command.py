"""`sae-binary run` passes on to sparsify's own command line, with or without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sparsify import SparseCoder

from sae_binary_ext.cli import main
from sae_binary_ext.sparsify import BinarySparseCoder

pytestmark = pytest.mark.integration

SETTINGS = {
    "k": "8",
    "expansion_factor": "8",
    "hookpoints": "layers.0.mlp",
    "ctx_len": "32",
    "batch_size": "4",
    "log_to_wandb": "False",
    "max_examples": "80",
    "data_preprocessing_num_proc": "1",
}


@pytest.fixture
def arguments(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Arguments: model, dataset and small settings. Checkpoints go to the test's folder."""
    monkeypatch.chdir(tmp_path)
    settings = [f"--{field}={value}" for field, value in SETTINGS.items()]
    return [str(tiny_model_folder), str(tiny_dataset), *settings]


def sparsify(*arguments: str) -> None:
    assert main(["run", "-m", "sparsify", *arguments]) == 0


def test_help_offers_the_binary_activations_and_fields(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        sparsify("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for word in ("topk_binary", "gumbel_binary", "--ste_temperature", "--entropy_alpha"):
        assert word in printed


def test_trains_resumes_and_finetunes(arguments: list[str], tmp_path: Path):
    binary = ("--activation", "topk_binary", "--entropy_alpha", "1e-4", "--transcode", "True")
    first = tmp_path / "checkpoints" / "first"
    sparsify(*arguments, *binary, "--run_name", "first")
    coder = SparseCoder.load_from_disk(first / "layers.0.mlp")
    assert type(coder) is BinarySparseCoder
    assert (coder.cfg.k, coder.cfg.entropy_alpha, coder.cfg.transcode) == (8, 1e-4, True)
    assert json.loads((first / "config.json").read_text())["sae"]["activation"] == "topk_binary"
    assert torch.load(first / "state.pt")["global_step"] == 20

    more = ("--run_name", "first", "--resume", "True", "--max_examples", "120")
    sparsify(*arguments, *binary, *more)
    assert torch.load(first / "state.pt")["global_step"] == 30
    resumed = load_file(first / "layers.0.mlp" / "sae.safetensors")
    assert not torch.equal(resumed["encoder.weight"], coder.encoder.weight)

    barely = ("--finetune", str(first), "--optimizer", "adam", "--lr", "1e-9")
    sparsify(*arguments, *binary, *barely, "--run_name", "second")
    tuned = load_file(tmp_path / "checkpoints" / "second" / "layers.0.mlp" / "sae.safetensors")
    for name in tuned.keys() - {"firing_rates"}:
        torch.testing.assert_close(tuned[name], resumed[name], atol=1e-6, rtol=0)


def test_finetunes_a_stock_coder_into_a_binary_one(arguments: list[str], tmp_path: Path):
    sparsify(*arguments, "--run_name", "stock")
    stock = tmp_path / "checkpoints" / "stock"
    barely = ("--optimizer", "adam", "--lr", "1e-9", "--run_name", "tuned")
    sparsify(*arguments, "--activation", "topk_binary", "--finetune", str(stock), *barely)
    coder = SparseCoder.load_from_disk(tmp_path / "checkpoints" / "tuned" / "layers.0.mlp")
    assert type(coder) is BinarySparseCoder
    before = load_file(stock / "layers.0.mlp" / "sae.safetensors")
    for name, values in (("encoder.weight", coder.encoder.weight), ("W_dec", coder.W_dec)):
        cosines = torch.cosine_similarity(values, before[name])
        torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-4, rtol=0)


@pytest.mark.parametrize("asked", [(), ("--activation", "topk")], ids=["by default", "asked for"])
def test_a_stock_activation_trains_a_stock_coder(
    asked: tuple[str, ...], arguments: list[str], tmp_path: Path
):
    sparsify(*arguments, *asked, "--run_name", "stock")
    folder = tmp_path / "checkpoints" / "stock" / "layers.0.mlp"
    coder = SparseCoder.load_from_disk(folder)
    assert type(coder) is SparseCoder
    fields = json.loads((folder / "cfg.json").read_text())
    assert fields.keys() == {*vars(coder.cfg), "d_in"}
    assert (fields["normalize_decoder"], fields["activation"]) == (True, "topk")


@pytest.mark.parametrize("distribute_modules", ["False", "True"])
def test_two_processes_train(distribute_modules: str, arguments: list[str], tmp_path: Path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    run = ["-m", "sae_binary_ext", "run", "-m", "sparsify", *arguments]
    binary = ["--activation", "binary", "--run_name", "ranks"]
    modules = ["--hookpoints", "layers.0.mlp", "layers.1.mlp"]
    distribute = ["--distribute_modules", distribute_modules]
    result = subprocess.run(
        [*launcher, *run, *binary, *modules, *distribute],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    coders = SparseCoder.load_many(str(tmp_path / "checkpoints" / "ranks"), local=True)
    assert coders.keys() == {"layers.0.mlp", "layers.1.mlp"}
    assert {type(coder) for coder in coders.values()} == {BinarySparseCoder}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--activation", "topk_binary", "--normalize_decoder", "True"), "lives in its decoder"),
        (("--activation", "topk", "--entropy_alpha", "1.0"), r"entropy_alpha=1\.0"),
        (("--activation", "binary", "--k", "0"), "k=0"),
    ],
)
def test_a_wrong_option_is_named(wrong: tuple[str, ...], message: str, arguments: list[str]):
    with pytest.raises(ValueError, match=message):
        sparsify(*arguments, *wrong)
