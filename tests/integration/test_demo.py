"""A much shortened run of the demo on SmolLM2 and Wikipedia."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.commands import DemoConfig
from sae_binary_ext.commands.demo import activations
from sae_binary_ext.commands.demo.demo_run import run_demo

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {
    "training_tokens": 4000,
    "held_out_tokens": 1000,
    "spliced_tokens": 200,
    "context_size": 64,
    "expansion": 2,
    "batch_size": 256,
    "epochs": 2,
}


def test_activations_are_the_residual_stream_without_position_0(
    smollm2_folder: Path, tmp_path: Path
):
    config = DemoConfig(output=tmp_path, layer=2, **SMALL)
    found = activations.load_or_compute(config, smollm2_folder)
    assert found.shape == (4000, 576)

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    rows = activations.tokenised_rows(config, tokenizer)[0][:3]
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    with torch.no_grad():
        model = LlamaForCausalLM.from_pretrained(smollm2_folder)
        hidden = model(rows, output_hidden_states=True).hidden_states[2]
    expected = hidden[:, 1:].flatten(0, 1)
    torch.testing.assert_close(found[: len(expected)].float(), expected, atol=0.05, rtol=2e-3)


def test_held_out_text_is_not_trained_on(smollm2_folder: Path, tmp_path: Path):
    config = DemoConfig(output=tmp_path, **SMALL)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    training, held_out = activations.tokenised_rows(config, tokenizer)
    assert not {tuple(row) for row in training.tolist()} & {tuple(r) for r in held_out.tolist()}


def test_more_tokens_than_the_sample_has_is_named(smollm2_folder: Path, tmp_path: Path):
    config = DemoConfig(output=tmp_path, held_out_tokens=10_000_000)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    with pytest.raises(ValueError, match="held_out_tokens=10000000"):
        activations.tokenised_rows(config, tokenizer)


def test_a_layer_the_model_lacks_is_named(smollm2_folder: Path, tmp_path: Path):
    config = DemoConfig(output=tmp_path, layer=30, **SMALL)
    with pytest.raises(ValueError, match="layer=30"):
        activations.load_or_compute(config, smollm2_folder)


def test_the_demo_runs_saves_and_reuses_its_activations(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "model").symlink_to(smollm2_folder)
    config = DemoConfig(output=tmp_path, **SMALL)
    printed = run_demo(config)
    names = ["binary", "binary_entropy", "binary_entropy_term_off", "topk", "jumprelu"]
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert [coder["name"] for coder in document["coders"]] == names
    for coder in document["coders"]:
        assert printed.count(f"{coder['name']} ") >= 2  # in figures and timings
        assert 0 < coder["fvu"]["value"] < 1.2
        assert coder["tokens"] >= 1000
        assert coder["settings"]["d_in"] == 576
        beside = json.loads((tmp_path / "coders" / coder["name"] / "metrics.json").read_text())
        assert beside == document | {"coders": [coder]}
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count("plotly-graph-div") == 6
    assert "FVU of the training batch" in report
    loaded = SAE.load_from_disk(tmp_path / "coders" / "binary_entropy")
    assert loaded.cfg.metadata.hook_name == "blocks.9.hook_resid_pre"

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(activations, "_compute", fail)
    again = activations.load_or_compute(config, smollm2_folder)
    assert again.shape == (4000, 576)
