"""delphi reads coders of both hosts, on a tiny model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from sae_binary_ext.checkpoints import CheckpointError, convert
from sae_binary_ext.cli import main
from sae_binary_ext.measure import Candidate, hookpoint_encoders, load_candidates
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.judge_server import JudgeServer, Messages

pytestmark = pytest.mark.integration

NEEDS_DELPHI = "needs the package eai-delphi"
WIDTH, LATENTS, CONTEXT, ROWS = 16, 40, 16, 8
# One coder of each kind reads the first layer's output, under its own host's name for it.
KINDS = ("saelens binary", "saelens topk", "sparsify binary", "sparsify topk")


def save(kind: str, folder: Path, model: Path) -> str:
    host, architecture = kind.split()
    if host == "sparsify":
        folder = folder / "layers.0"
        if architecture == "binary":
            cfg = BinarySparseCoderConfig(num_latents=LATENTS, k=5)
            BinarySparseCoder(WIDTH, cfg).save_to_disk(folder)
        else:
            SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=5)).save_to_disk(folder)
        return str(folder)
    metadata = SAEMetadata(model_name=str(model), hook_name="blocks.1.hook_resid_pre")
    sizes: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": 5, "metadata": metadata}
    binary = architecture == "binary"
    coder = BinarySAE(BinarySAEConfig(**sizes)) if binary else TopKSAE(TopKSAEConfig(**sizes))
    coder.save_model(folder)
    return str(folder)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(2, 60, (ROWS, CONTEXT))


def codes_by_hand(candidate: Candidate, model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        # hidden_states[1] is the output of the first layer, which the coders read.
        hidden = model(tokens, output_hidden_states=True).hidden_states[1]
        return candidate.coder.encode(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])


@pytest.mark.parametrize("loader", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_takes_its_module_s_output(
    kind: str, loader: Any, tokens: Tensor, tiny_model_folder: Path, tmp_path: Path
):
    model = loader.from_pretrained(tiny_model_folder)
    candidates = load_candidates([save(kind, tmp_path, tiny_model_folder)])
    found = hookpoint_encoders(candidates, model)
    assert not found.transcode
    ((name, encode),) = found.encoders.items()
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_hook(
        lambda _, __, output: seen.append(encode(output if torch.is_tensor(output) else output[0]))
    )
    model(tokens)
    assert seen[0].shape == (ROWS, CONTEXT, LATENTS)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], codes_by_hand(candidates[0], model, tokens).float())
    assert (seen[0] != 0).any()


def transcoder(folder: Path, model: Path, layer: int) -> str:
    metadata = SAEMetadata(
        model_name=str(model),
        hook_name=f"blocks.{layer}.mlp.hook_in",
        hook_name_out=f"blocks.{layer}.hook_mlp_out",
    )
    config = BinaryTranscoderConfig(d_in=WIDTH, d_sae=LATENTS, d_out=WIDTH, k=5, metadata=metadata)
    BinaryTranscoder(config).save_model(folder)
    return str(folder)


def test_a_transcoder_takes_its_module_s_input(
    tokens: Tensor, tiny_model_folder: Path, tmp_path: Path
):
    model = AutoModel.from_pretrained(tiny_model_folder)
    sources = [transcoder(tmp_path / str(n), tiny_model_folder, n) for n in (0, 1)]
    candidates = load_candidates(sources)
    found = hookpoint_encoders(candidates, model)
    assert found.transcode
    assert list(found.encoders) == ["layers.0.mlp", "layers.1.mlp"]
    seen: list[Tensor] = []
    model.get_submodule("layers.1.mlp").register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0])
    )
    model(tokens)
    expected = candidates[1].coder.encode(seen[0].flatten(0, 1))
    assert torch.equal(found.encoders["layers.1.mlp"](seen[0]).flatten(0, 1), expected)


def test_what_delphi_cannot_have_is_refused(tiny_model_folder: Path, tmp_path: Path):
    model = AutoModel.from_pretrained(tiny_model_folder)
    one, other = (save(kind, tmp_path / kind, tiny_model_folder) for kind in KINDS[:2])
    with pytest.raises(ValueError, match=r"another coder also belongs at layers\.0"):
        hookpoint_encoders(load_candidates([one, other]), model)
    source = transcoder(tmp_path / "transcoder", tiny_model_folder, 0)
    with pytest.raises(ValueError, match="is a transcoder and"):
        hookpoint_encoders(load_candidates([one, source]), model)
    with pytest.raises(ValueError, match="none were given"):
        hookpoint_encoders([], model)
    (candidate,) = load_candidates([one])

    def at(hook_name: str) -> list[Candidate]:
        return [
            replace(candidate, site=replace(candidate.site, hook_name=hook_name,
                                            hook_name_out=hook_name))
        ]  # fmt: skip

    with pytest.raises(ValueError, match="no such module"):
        hookpoint_encoders(at("blocks.7.hook_resid_post"), model)
    with pytest.raises(CheckpointError, match="no hookpoint"):
        hookpoint_encoders(at("blocks.0.attn.hook_q"), model)
    encode = hookpoint_encoders([candidate], model).encoders["layers.0"]
    with pytest.raises(ValueError, match="takes 16 dimensions, and the module gives 12"):
        encode(torch.randn(2, 3, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_delphi_s_cache_holds_every_firing(
    kind: str, tokens: Tensor, tiny_model_folder: Path, tmp_path: Path
):
    latents = pytest.importorskip("delphi.latents", reason=NEEDS_DELPHI)
    model = AutoModel.from_pretrained(tiny_model_folder)
    candidates = load_candidates([save(kind, tmp_path, tiny_model_folder)])
    found = hookpoint_encoders(candidates, model)
    cache = latents.LatentCache(model, found.encoders, batch_size=4, transcode=found.transcode)
    cache.run(tokens.numel(), tokens)
    cache.save_splits(n_splits=1, save_dir=tmp_path / "cache")
    saved = load_file(tmp_path / "cache" / "layers.0" / f"0_{LATENTS - 1}.safetensors")
    codes = torch.zeros(ROWS, CONTEXT, LATENTS)
    row, position, latent = saved["locations"].long().unbind(1)
    codes[row, position, latent] = saved["activations"].float()
    expected = codes_by_hand(candidates[0], model, tokens)
    # delphi writes codes in float16, and omits codes of at most 1e-5.
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-3)


def test_delphi_s_cache_takes_a_stock_form_as_it_is(
    tokens: Tensor, tiny_model_folder: Path, tmp_path: Path
):
    latents = pytest.importorskip("delphi.latents", reason=NEEDS_DELPHI)
    coder = BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, selection="threshold"))
    coder.save_model(tmp_path / "binary")
    convert(str(tmp_path / "binary"), tmp_path / "stock", host="stock")
    stock = SAE.load_from_disk(tmp_path / "stock")
    model = AutoModel.from_pretrained(tiny_model_folder)
    cache = latents.LatentCache(model, {"layers.0": stock.encode}, batch_size=4)
    cache.run(tokens.numel(), tokens)
    cache.save_splits(n_splits=1, save_dir=tmp_path / "cache")
    saved = load_file(tmp_path / "cache" / "layers.0" / f"0_{LATENTS - 1}.safetensors")
    hidden = model(tokens, output_hidden_states=True).hidden_states[1]
    assert torch.equal(saved["locations"].long(), coder.encode(hidden).nonzero())
    assert saved["activations"].unique().tolist() == [1.0]


def judge_s_rule(messages: Messages) -> str:
    """A judge that gives each latent the same explanation and calls each example active."""
    examples = re.findall(r"^Example \d+:", messages[-1]["content"], re.MULTILINE)
    asked_to_score = "Latent explanation" in messages[-1]["content"]
    return str([1] * len(examples)) if asked_to_score else "[EXPLANATION]: some words"


def test_delphi_s_command_line_takes_binary_coders_without_a_gpu(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    openrouter = pytest.importorskip("delphi.clients.openrouter", reason=NEEDS_DELPHI)
    # k is 1, because delphi gives up on a latent that is active in each window of the text.
    cfg = BinarySparseCoderConfig(num_latents=LATENTS, k=1)
    BinarySparseCoder(WIDTH, cfg).save_to_disk(tmp_path / "coders" / "layers.0")
    judge = JudgeServer(judge_s_rule)
    judge.start()
    # delphi's command line has no option for the judge's address.
    defaults = (None, judge.url, *openrouter.OpenRouter.__init__.__defaults__[2:])
    monkeypatch.setattr(openrouter.OpenRouter.__init__, "__defaults__", defaults)
    monkeypatch.setenv("OPENROUTER_API_KEY", "of nobody")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    options = {
        "hookpoints": "layers.0", "explainer_provider": "openrouter", "explainer_model": "judge",
        "dataset_repo": str(tiny_dataset), "dataset_split": "train", "cache_ctx_len": "32",
        "n_tokens": "6400", "batch_size": "4", "example_ctx_len": "8", "min_examples": "20",
        "n_non_activating": "10", "n_examples_train": "10", "n_examples_test": "10",
        "max_latents": str(LATENTS), "verbose": "false",
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = ["run", "-m", "delphi", str(tiny_model_folder), str(tmp_path / "coders"), *arguments]
    assert main(command) == 0
    judge.shutdown()

    scores = sorted((tmp_path / "results" / "scores" / "detection").iterdir())
    assert len(scores) > 5
    for path in scores:
        examples = json.loads(path.read_text())
        assert {example["activating"] for example in examples} == {True, False}
        for example in examples:
            assert example["correct"] == example["activating"]
            assert set(example["activations"]) <= {0.0, 1.0}
    explained = sum("Latent explanation" not in each[-1]["content"] for each in judge.asked)
    assert explained == len(scores)
