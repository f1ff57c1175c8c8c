"""`compare` loads the model that a coder's files name, under any of its names and classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder, SparseCoderConfig
from transformers import AutoModelForCausalLM

from sae_binary_ext.cli import main
from sae_binary_ext.commands import EntropyConfig, run_entropy
from sae_binary_ext.commands.compare.compare_run import run_compare
from sae_binary_ext.measure import hookpoint_encoders, load_candidates
from sae_binary_ext.measure.refit import refit
from sae_binary_ext.measure.text import Text, read_activations
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.integration.compare_helpers import WIDTH, config_of

pytestmark = pytest.mark.integration

HOOK = "blocks.0.hook_resid_post"
CENTERED = {"center_writing_weights": True}


@pytest.fixture(autouse=True)
def _at_the_hub(tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the parent of the folder "gpt2". Both libraries then load it by the name "gpt2"."""
    monkeypatch.chdir(tiny_gpt2_folder.parent)


def save_exact(folder: Path, settings: dict[str, Any], **place: Any) -> str:
    """Save a coder whose output is exact only for activations whose dimensions have mean 0."""
    ones = torch.ones(WIDTH, 1) / WIDTH**0.5
    across = torch.linalg.svd(ones).U[:, 1:]
    metadata = SAEMetadata(
        **{"model_name": "gpt2", "hook_name": HOOK} | place, model_from_pretrained_kwargs=settings
    )
    config = StandardSAEConfig(
        d_in=WIDTH, d_sae=2 * (WIDTH - 1), apply_b_dec_to_input=False, metadata=metadata
    )
    coder = StandardSAE(config)
    with torch.no_grad():
        coder.W_enc.copy_(torch.cat([across, -across], dim=1))
        coder.W_dec.copy_(torch.cat([across, -across], dim=1).T)
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    coder.save_model(folder)
    return str(folder)


def fvu_of(folder: Path) -> list[float]:
    return [
        each["fvu"]["value"] for each in json.loads((folder / "metrics.json").read_text())["coders"]
    ]


@pytest.mark.parametrize("class_name", ["HookedTransformer", "TransformerBridge"])
def test_a_model_is_loaded_as_the_coder_says(
    class_name: str, tiny_gpt2_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    centred = save_exact(tmp_path / "centred", CENTERED, model_class_name=class_name)
    raw = save_exact(tmp_path / "raw", {"fold_ln": False}, model_class_name=class_name)
    config = config_of(tiny_gpt2_folder, tiny_dataset, tmp_path / "out", tokens=500)
    config.model = None
    found: dict[str, float] = {}
    for name, source in (("centred", centred), ("raw", raw)):
        config.output = tmp_path / name / "out"
        run_compare([source], config)
        (found[name],) = fvu_of(config.output)
        (fvu,) = run_entropy(
            [source],
            EntropyConfig(
                dataset=str(tiny_dataset), output=tmp_path / name, tokens=500, context_size=16
            ),
        ).results["coders"]
        assert fvu["fvu"].value == pytest.approx(found[name], rel=1e-5, abs=1e-9)
    assert found["centred"] < 1e-9
    assert found["raw"] > 0.01
    with pytest.raises(ValueError, match=r"centred and raw need different models.*center_writing"):
        run_compare([centred, raw], config)
    # A setting that equals its default does not make another model.
    plain = save_exact(tmp_path / "plain", {}, model_class_name=class_name)
    config.output = tmp_path / "both"
    run_compare([raw, plain], config)
    assert fvu_of(config.output) == pytest.approx([found["raw"]] * 2)


def test_delphi_is_not_given_coders_of_a_processed_model(tmp_path: Path):
    coder = save_exact(tmp_path / "a", CENTERED)
    model: Any = AutoModelForCausalLM.from_pretrained("gpt2")
    with pytest.raises(ValueError, match=r"a: .*center_writing_weights=True"):
        hookpoint_encoders(load_candidates([coder]), model)


def test_refit_reads_the_model_that_the_coder_says(tiny_dataset: Path, tmp_path: Path):
    config = BinarySAEConfig(d_in=WIDTH, d_sae=40, k=5)
    coder = BinarySAE(config)
    for key, value in {"model_name": "gpt2", "hook_name": HOOK}.items():
        coder.cfg.metadata[key] = value
    text = Text(str(tiny_dataset), context_size=16)
    for settings, centred in ((CENTERED, True), ({}, False)):
        coder.cfg.metadata.model_from_pretrained_kwargs = settings
        inputs, _ = next(read_activations(coder, text))
        assert (inputs.mean(1).abs().max().item() < 1e-5) == centred


def test_one_stream_under_several_names_is_one_site(
    tiny_gpt2_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    places = {
        "hooked": {"model_class_name": "HookedTransformer", "model_name": "gpt2-small"},
        "bridge": {"model_class_name": "TransformerBridge", "model_name": "openai-community/gpt2"},
        "entering": {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_pre"},
        "plain": {
            "model_class_name": "AutoModelForCausalLM",
            "model_name": "gpt2",
            "hook_name": "transformer.h.0",
        },
    }
    coders = [save_exact(tmp_path / name, {}, **place) for name, place in places.items()]
    SparseCoder(WIDTH, SparseCoderConfig(num_latents=40, k=5)).save_to_disk(tmp_path / "h.0")
    config = config_of(tiny_gpt2_folder, tiny_dataset, tmp_path / "out", tokens=500)
    config.model = None
    run_compare([*coders, str(tmp_path / "h.0")], config)
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {coder["hook_name"] for coder in document["coders"]} == {HOOK}
    same = fvu_of(tmp_path / "out")[:4]
    assert same == pytest.approx([same[0]] * 4)
    # --model overrides the coder's files, even with a folder that TransformerLens does not know.
    config.model, config.output = str(tiny_gpt2_folder), tmp_path / "folder"
    run_compare(coders[:1], config)
    assert fvu_of(config.output) == pytest.approx(same[:1])


def test_what_a_bridge_has_elsewhere_is_not_taken_for_the_same(
    tiny_gpt2_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    place = {"hook_name": "blocks.0.hook_attn_in", "model_class_name": "HookedTransformer"}
    coders = [save_exact(tmp_path / "a", {}, **place), save_exact(tmp_path / "b", {})]
    config = config_of(tiny_gpt2_folder, tiny_dataset, tmp_path / "out")
    with pytest.raises(ValueError, match=r"a: was trained at blocks\.0\.hook_attn_in of a Hooked"):
        run_compare(coders, config)
    mamba = save_exact(tmp_path / "c", {}, model_class_name="HookedMamba")
    with pytest.raises(ValueError, match=r"different classes.*HookedMamba"):
        run_compare([coders[1], mamba], config)


def test_rows_are_no_longer_than_the_model_has_positions(
    tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    coder = save_exact(tmp_path / "a", {})
    options = ["--dataset", str(tiny_dataset), "--tokens", "500"]
    assert main(["compare", coder, *options, "--output", str(tmp_path / "out")]) == 0
    assert "context_size=256: the model has 32 positions" in caplog.text
    run = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]
    assert run["context_size"] == "32"
    assert main(["entropy", coder, *options, "--output", str(tmp_path / "out")]) == 0
    assert (
        json.loads((tmp_path / "out" / "entropy.json").read_text())["run"]["context_size"] == "32"
    )


def test_a_split_and_a_column_for_every_reader(tmp_path: Path):
    words = [" ".join(f"w{(3 * row + i) % 58 + 2}" for i in range(31)) for row in range(40)]
    entries = {"body": words, "title": words}
    DatasetDict(
        {"dev": Dataset.from_dict(entries), "test": Dataset.from_dict(entries)}
    ).save_to_disk(tmp_path / "text")
    text = {"dataset": str(tmp_path / "text"), "split": "dev", "text_column": "body"}
    coder = save_exact(tmp_path / "a", {})
    options = [f"--{key}={value}" for key, value in text.items()] + ["--tokens", "300"]
    for command in ("compare", "entropy"):
        output = ["--output", str(tmp_path / command)]
        assert main([command, coder, *options, *output]) == 0
    binary = BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=40, k=5))
    for key, value in {"model_name": "gpt2", "hook_name": HOOK}.items():
        binary.cfg.metadata[key] = value
    binary.save_model(tmp_path / "binary")
    assert main(["refit", str(tmp_path / "binary"), str(tmp_path / "new"), *options]) == 0
    with pytest.raises(ValueError, match=r"split='train'.*\['dev', 'test'\]"):
        refit(tmp_path / "binary", tmp_path / "other", Text(text["dataset"]))
    with pytest.raises(ValueError, match=r"text_column='nowhere'.*\['body', 'title'\]"):
        refit(
            tmp_path / "binary",
            tmp_path / "other",
            Text(text["dataset"], split="dev", text_column="nowhere"),
        )
