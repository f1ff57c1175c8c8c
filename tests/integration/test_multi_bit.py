"""`sae-binary multi-bit` reads saved coders and a text and writes coders of several levels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import open_coders
from sae_binary_ext.measure.text import read_halves
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from sae_binary_ext.settings import ReadingConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders

pytestmark = pytest.mark.integration
TOKENS = 3000


def save_threshold_coder(folder: Path, model: Path) -> str:
    coder = BinarySAE(BinarySAEConfig(d_in=16, d_sae=48, selection="threshold"))
    with torch.no_grad():
        coder.W_enc.normal_()
        coder.W_dec.normal_(std=0.1)
    coder.cfg.metadata.model_name, coder.cfg.metadata.hook_name = str(model), HOOK
    coder.save_model(folder)
    return str(folder)


def options(model: Path, dataset: Path, output: Path) -> list[str]:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--hook", HOOK]
    return [
        *arguments,
        *("--tokens", str(TOKENS), "--context_size", str(CONTEXT), "--output", str(output)),
    ]


def test_the_coders_written_have_the_figures_of_the_table(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = save_threshold_coder(tmp_path / "plain", tiny_model_folder)
    arguments = options(tiny_model_folder, tiny_dataset, tmp_path)
    assert main(["multi-bit", source, *arguments, "--levels", "1", "3"]) == 0
    assert (tmp_path / "multi-bit.html").is_file()
    found = json.loads((tmp_path / "multi-bit.json").read_text())["results"]["coders"]
    one, three = found
    assert [one["levels"], three["levels"]] == [1, 3]
    assert three["fvu"]["value"] < one["fvu"]["value"]
    assert one["bits"] == pytest.approx(one["independent_bits"]["value"])
    assert one["bits"] < three["bits"] < three["independent_bits"]["value"]
    assert f"{three['bits']:.1f}" in capsys.readouterr().out

    config = ReadingConfig(
        str(tiny_model_folder), str(tiny_dataset), HOOK, tokens=TOKENS, context_size=CONTEXT
    )
    opened = open_coders([source], config, tmp_path / "again")
    (halves,) = read_halves(opened, config, opened.hooks.values()).values()
    measured = torch.cat([batch.inputs for batch in halves.measured])
    for each in found:
        coder: Any = load_coder(tmp_path / "coders" / each["folder"])
        assert coder.cfg.d_sae == each["latents"] == 48 * each["levels"]
        metrics = measure(coder, measured)
        assert metrics.fvu == pytest.approx(each["fvu"]["value"], rel=1e-4)
        assert metrics.entropy_bits == pytest.approx(each["independent_bits"]["value"])
        assert coder.cfg.metadata.hook_name == HOOK


def test_coders_without_thresholds_of_their_own_are_refused(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = save_coders(tmp_path, tiny_model_folder)
    # The dataset does not exist: the coders are refused before any text is read.
    arguments = options(tiny_model_folder, tmp_path / "none", tmp_path / "out")
    problems = {"binary": "selection='topk'", "stock": "its codes have values"}
    for name, problem in problems.items():
        (folder,) = [each for each in folders if Path(each).name == name]
        with pytest.raises(SystemExit):
            main(["multi-bit", folder, *arguments])
        assert problem in capsys.readouterr().err


def test_no_level_is_none(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["multi-bit", "somewhere", "--levels", "0"])
    assert "levels=[0]" in capsys.readouterr().err
