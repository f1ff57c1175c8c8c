"""`sae-binary steer` on a tiny model with coders of both hosts, and on SmolLM2."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_binary_ext.bundled.smollm2 import MODEL_NAME
from sae_binary_ext.cli import main
from sae_binary_ext.commands.steer import measuring
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.integration.compare_helpers import HOOK, save_coders

pytestmark = pytest.mark.integration


def steer(coders: list[str], model: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--hook", HOOK, "--output", str(output), *more]
    assert main(["steer", *coders, *arguments]) == 0
    assert (output / "steer.html").is_file()
    return json.loads((output / "steer.json").read_text())["results"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_text_is_generated_before_and_after(place: int, tiny_model_folder: Path, tmp_path: Path):
    folders = save_coders(tmp_path, tiny_model_folder)
    # The folder of sparsify's run has a stock coder and a binary one.
    coder = [*folders[:2], folders[2] + "/binary"][place]
    strength = ["--strength", "50"] if place == 1 else []
    found = steer(
        [coder], tiny_model_folder, tmp_path / "out", "--set", "3", "9", "--flip", "5", *strength,
        "--where", "!7", "--prompt", "w4 w9 w12", "--new-tokens", "8",
    )  # fmt: skip
    before, after = found["texts"]
    assert found["prompt"] == "w4 w9 w12"
    assert [each["model"] for each in found["texts"]] == ["as it is", "steered"]
    assert before["moved"] == []
    assert 0 < len(after["moved"]) <= 9
    assert after["kl_next"] == after["moved"][0]
    assert after["kl_continuation"] == pytest.approx(sum(after["moved"]) / len(after["moved"]))
    named = {each["latent"]: each["operation"] for each in found["latents"]}
    assert named == {3: "set", 5: "flip", 9: "set"}
    assert any(each["changed"] for each in found["latents"]) == any(after["moved"])


def test_sampling_repeats_with_the_seed(tiny_model_folder: Path, tmp_path: Path):
    coder = save_coders(tmp_path, tiny_model_folder)[0]

    def text(seed: str) -> str:
        more = ("--clear", "3", "--prompt", "w4", "--temperature", "1.5", "--seed", seed)
        found = steer([coder], tiny_model_folder, tmp_path / "out", *more)
        return found["texts"][0]["text"]

    assert text("1") == text("1") != text("2")


MISTAKES = {
    "no prompt": (["--set", "3"], "prompt=None: there is no text to continue"),
    "nothing": (["--prompt", "w4"], "set, clear, flip: name no latent"),
    "strength": (["--prompt", "w4", "--set", "3", "--strength", "2"], "strength=2.0: a latent of"),
    "both": (["--measure", "3", "--set", "3"], "measure=3 with set: a measurement turns on random"),
    "range": (["--prompt", "w4", "--clear", "99"], "clear=[99]: the coder has 40 latents"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(
    case: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    coder = save_coders(tmp_path, tiny_model_folder)[0]
    more, message = MISTAKES[case]
    arguments = ["--model", str(tiny_model_folder), "--output", str(tmp_path / "out"), *more]
    with pytest.raises(SystemExit):
        main(["steer", coder, *arguments])
    assert message in capsys.readouterr().err


def test_several_coders_have_no_common_numbers_of_latents(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    coders = save_coders(tmp_path, tiny_model_folder)[:2]
    arguments = ["--output", str(tmp_path / "out"), "--set", "3", "--prompt", "w4"]
    with pytest.raises(SystemExit):
        main(["steer", *coders, "--model", str(tiny_model_folder), *arguments])
    assert "binary, stock. The latents are numbers of one coder" in capsys.readouterr().err


def test_a_stopped_measurement_goes_on(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = save_coders(tmp_path, tiny_model_folder)[:2]
    figures, run = measuring.PromptRun.figures, list[int]()

    def measure(output: Path) -> Any:
        more = ("--dataset", str(tiny_dataset), "--context_size", "32", "--tokens", "3000")
        return steer(folders, tiny_model_folder, output, "--measure", "6", *more)

    def noted(self: Any, places: Any, values: Any) -> Any:
        if len(run) == 5:
            run.append(0)
            raise KeyboardInterrupt
        run.append(len(places))
        return figures(self, places, values)

    monkeypatch.setattr(measuring.PromptRun, "figures", noted)
    with pytest.raises(SystemExit) as stopped:
        measure(tmp_path / "stopped")
    assert stopped.value.code == 130
    first = sum(run)
    found = measure(tmp_path / "stopped")
    number = len(found["latents"])
    # A stock coder's latents are run at each factor, on both kinds of prompts.
    assert number == 6 * (1 + 2 * len(measuring.FACTORS))
    assert sum(run) == number
    assert 0 < first < number
    assert measure(tmp_path / "whole") == found
    again = sum(run)
    assert measure(tmp_path / "whole") == found
    assert sum(run) == again


def test_smollm2_says_what_a_decoder_row_tells_it(smollm2_folder: Path, tmp_path: Path):
    """After the last block, a long decoder row decides the token, by the model's own logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    row = model.lm_head.weight[tokenizer.encode(" banana")[0]].detach()
    with torch.no_grad():
        said = tokenizer.decode(model.lm_head(model.model.norm(row)).argmax())
    coder = BinarySAE(BinarySAEConfig(d_in=576, d_sae=32, selection="threshold"))
    coder.log_threshold.data.fill_(20.0)  # no latent fires by itself
    coder.W_dec.data[5] = 1e5 * row / row.norm()
    coder.cfg.metadata.hook_name = "blocks.29.hook_resid_post"
    coder.cfg.metadata.model_name = MODEL_NAME
    coder.save_model(tmp_path / "coder")
    arguments = ["--set", "5", "--prompt", "My favourite fruit is the", "--new-tokens", "3"]
    paths = ["--model", str(smollm2_folder), "--output", str(tmp_path / "out")]
    assert main(["steer", str(tmp_path / "coder"), *arguments, *paths]) == 0
    results = json.loads((tmp_path / "out" / "steer.json").read_text())["results"]
    before, after = results["texts"]
    assert after["text"].startswith(said)
    assert not before["text"].startswith(said)
    assert after["kl_next"] > 1
    assert results["latents"] == [{"latent": 5, "operation": "set", "fires": 0.0, "changed": 1.0}]
    assert torch.is_grad_enabled()
