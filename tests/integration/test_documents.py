"""The code blocks and commands of the documents run."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sae_binary_ext.checkpoints import push
from sae_binary_ext.cli import main
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.documents import ROOT, Block, command_lines, python_blocks
from tests.hub_server import Hub
from tests.integration.sparsify_helpers import token_rows
from tests.small_models import autoencoder_settings, runner_settings, save_wide_model

pytestmark = pytest.mark.integration

# sae-bench needs older packages than the hosts here, so its block needs its own environment.
BLOCKS = [block for block in python_blocks() if "sae_bench" not in block.code]
WIDTH = 576


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    save_wide_model(folder)
    return folder


def in_saelens(model: Path, text: Path) -> dict[str, Any]:
    settings = autoencoder_settings(str(model), str(text))
    return {"settings": settings, "activations": torch.randn(4, WIDTH)}


def transcoders(model: Path, text: Path) -> dict[str, Any]:
    return {"settings": runner_settings(str(model), str(text))}


def in_sparsify(model: Path, text: Path) -> dict[str, Any]:
    rows = Dataset.from_dict({"input_ids": token_rows(16, 16, 60).tolist()}).with_format("torch")
    return {"tokens": rows, "model": AutoModel.from_pretrained(model, dtype=torch.float32)}


def checkpoints(model: Path, text: Path) -> dict[str, Any]:
    BinarySparseCoder(
        WIDTH, BinarySparseCoderConfig(num_latents=64, k=8, transcode=True)
    ).save_to_disk("mlp9/layers.9.mlp")
    push("mlp9", "user/repo")
    save_output()
    return {}


def in_delphi(model: Path, text: Path) -> dict[str, Any]:
    pytest.importorskip("delphi.latents", reason="needs the package eai-delphi")
    save_output()
    return {"model": AutoModel.from_pretrained(model)}


def text_for_circuits(model: Path, text: Path) -> dict[str, Any]:
    shutil.copytree(model, "runs/smollm2")  # instead of SmolLM2
    return {}


def circuits(model: Path, text: Path) -> dict[str, Any]:
    pytest.importorskip("circuit_tracer", reason="needs the package circuit-tracer")
    config = BinarySparseCoderConfig(num_latents=64, k=8, transcode=True)
    for layer in range(AutoConfig.from_pretrained(model).num_hidden_layers):
        BinarySparseCoder(WIDTH, config).save_to_disk(
            f"output/binary_transcoder/layers.{layer}.mlp"
        )
    Path("output/binary_transcoder/config.json").write_text(json.dumps({"model": "runs/smollm2"}))
    return text_for_circuits(model, text)


def save_output() -> None:
    """Save an untrained autoencoder of layer 9 in the folder "output" instead of a trained one."""
    config = BinarySAEConfig(d_in=WIDTH, d_sae=64, k=8)
    config.metadata.model_name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.metadata.hook_name = "blocks.9.hook_resid_pre"
    BinarySAE(config).save_model("output")


def steering(model: Path, text: Path) -> dict[str, Any]:
    save_output()
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return {"model": plain, "prompt": torch.randint(2, 60, (1, 8))}


# For each section with a block: the function that defines the names which the block uses.
GIVEN: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "Start here in five minutes": in_saelens,
    "In SAELens": in_saelens,
    "Transcoders in SAELens": transcoders,
    "Transcoders of all layers": transcoders,
    "In sparsify": in_sparsify,
    "Checkpoints": checkpoints,
    "In delphi": in_delphi,
    "From text to a page": text_for_circuits,
    "From Python": circuits,
    "Steering in Python": steering,
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document}-{block.heading}")
def test_a_block_runs(
    block: Block,
    wide_model: Path,
    tiny_dataset: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    names = GIVEN[block.heading](wide_model, tiny_dataset)
    exec(compile(block.code, f"{block.document}: {block.heading}", "exec"), names)
    if "codes" in names:
        assert set(names["codes"].flatten().tolist()) == {0.0, 1.0}


def help_of(command: str) -> str:
    """The text that --help of a subcommand prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize(("document", "line"), sorted(set(command_lines())))
def test_a_command_line_s_words_are_known(document: str, line: str):
    program, *words = line.replace("[", "").replace("]", "").split()
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[0] in targets
        return
    command = words[0]
    if command == "run":  # its options belong to the host
        return
    known = help_of(command)
    assert f"sae-binary {command}" in known
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, word
