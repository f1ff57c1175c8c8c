"""`sae-binary transfer` measures coders of both hosts at a layer that equals theirs or not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import open_coders, read_text
from sae_binary_ext.settings import ReadingConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders

pytestmark = pytest.mark.integration
TOKENS = 1500


@pytest.fixture(scope="module")
def idle_model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a second block that adds nothing, so both layers have the same output."""
    folder = tmp_path_factory.mktemp("idle")
    model = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        block = model.model.layers[1]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    return folder


def transfer(coders: list[str], model: Path, dataset: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--hook", HOOK]
    arguments += ["--tokens", str(TOKENS), "--context_size", str(CONTEXT), "--output", str(output)]
    assert main(["transfer", *coders, *arguments, "--layers", "0", "1", *more]) == 0
    assert (output / "transfer.html").is_file()
    found = json.loads((output / "transfer.json").read_text())["results"]["coders"]
    return {(each["name"], each["layer"]): each for each in found}


def test_at_home_figures_are_the_coders_own_and_nothing_has_shifted(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, tiny_model_folder)
    found = transfer(folders, tiny_model_folder, tiny_dataset, tmp_path / "out")
    assert len(found) == 8

    config = ReadingConfig(
        str(tiny_model_folder), str(tiny_dataset), HOOK, tokens=TOKENS, context_size=CONTEXT
    )
    opened = open_coders(folders, config, tmp_path / "again")
    (hooks,) = opened.hooks.values()
    inputs: list[torch.Tensor] = []
    for batch in read_text(opened, config):
        odd = torch.tensor(batch.text.documents) % 2 == 1
        inputs.append(batch.found[hooks[0]][batch.where & odd[:, None]])
    for candidate in opened.candidates:
        home, away = found[candidate.name, 0], found[candidate.name, 1]
        metrics = measure(candidate.coder, torch.cat(inputs))
        assert home["at_home"]
        assert home["fvu"]["value"] == pytest.approx(metrics.fvu, rel=1e-4)
        assert home["scaled_fvu"]["value"] == pytest.approx(metrics.fvu, rel=1e-4)
        assert home["entropy_bits"]["value"] == pytest.approx(metrics.entropy_bits)
        assert home["shift_bits"] == pytest.approx(0, abs=1e-12)
        assert not away["at_home"]
        assert away["shift_bits"] > 0.1
        if "binary" in candidate.name:
            assert away["refitted_fvu"]["value"] < away["fvu"]["value"]
        else:
            assert away["refitted_fvu"] is None


def test_a_layer_that_is_the_same_gives_the_same(
    idle_model: Path, tiny_dataset: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, idle_model)[:1]
    found = transfer(folders, idle_model, tiny_dataset, tmp_path / "out")
    home, away = found["binary", 0], found["binary", 1]
    different = {key for key in home if home[key] != away[key]}
    assert different == {"layer", "at_home"}


def test_a_hook_that_has_other_names_is_at_home_where_its_file_says(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    # A block's input is the output of the block before, and `compare` reads it there.
    coder: Any = load_coder(save_coders(tmp_path, tiny_model_folder)[0])
    coder.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
    coder.save_model(tmp_path / "pre")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
    arguments += ["--tokens", str(TOKENS), "--context_size", str(CONTEXT)]
    assert main(["transfer", str(tmp_path / "pre"), *arguments, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "transfer.json").read_text())["results"]["coders"]
    assert [(each["layer"], each["at_home"]) for each in found] == [(0, False), (1, True)]


def test_a_text_of_one_document_is_refused(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = save_coders(tmp_path, tiny_model_folder)[:1]
    (tmp_path / "one.txt").write_text("w3 w4 w5 w6 " * 40)
    with pytest.raises(SystemExit):
        transfer(folders, tiny_model_folder, tmp_path / "one.txt", tmp_path / "out")
    assert "the text read is one document" in capsys.readouterr().err
