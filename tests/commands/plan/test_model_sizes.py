"""Sizes of models agree with the models that transformers makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

from sae_binary_ext.commands.plan.model_sizes import MODELS, find_sizes

CONFIGS = {"llama": LlamaConfig, "gpt2": GPT2Config, "gemma2": Gemma2Config, "qwen3": Qwen3Config}
# Parameters of the published models, in millions, as their cards tell.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M": 135,
    "openai-community/gpt2": 124,
    "meta-llama/Llama-3.2-1B": 1236,
    "google/gemma-2-2b": 2614,
    "Qwen/Qwen3-1.7B": 1721,
    "meta-llama/Llama-3.1-8B": 8030,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_those_of_the_published_model(name: str):
    weights = find_sizes(name).weights(with_output_layer=True)
    assert weights / 1e6 == pytest.approx(PUBLISHED[name], rel=4e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_those_that_transformers_makes(name: str):
    fields: dict[str, Any] = MODELS[name] | {"num_hidden_layers": 2}
    fields = {k: v for k, v in fields.items() if k not in ("model_type", "torch_dtype")}
    config = CONFIGS[MODELS[name]["model_type"]](**fields)
    sizes = find_sizes(name, ["num_hidden_layers=2"])
    with torch.device("meta"):
        for kind, with_output in ((AutoModelForCausalLM, True), (AutoModel, False)):
            numbers = sum(each.numel() for each in kind.from_config(config).parameters())
            assert sizes.weights(with_output) == pytest.approx(numbers, rel=1e-3)


def test_a_config_on_disk_is_read(tmp_path: Path):
    GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=40).save_pretrained(tmp_path)
    sizes = find_sizes(str(tmp_path))
    assert (sizes.width, sizes.layers, sizes.mlp_width, sizes.positions) == (32, 3, 128, 40)
    nested = {"model_type": "llama", "text_config": {**MODELS["google/gemma-2-2b"]}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert find_sizes(str(tmp_path)) == find_sizes("google/gemma-2-2b")


def test_an_unknown_model_says_which_sizes_to_give():
    with pytest.raises(ValueError, match=r"--sizes hidden_size=\.\.\. num_hidden_layers=") as stop:
        find_sizes("someone/unknown", ["vocab_size=100"])
    missing = str(stop.value).partition("--sizes ")[2].split()
    assert "vocab_size=..." not in missing
    given = [name.replace("...", "8" if "type" not in name else "llama") for name in missing]
    assert find_sizes("someone/unknown", ["vocab_size=100", *given]).width == 8


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("hidden_size", "give a name and a number"),
        ("hidden_size=wide", "give a name and a number"),
        ("hidden_size=0", "give a name and a number"),
        ("model_type=rwkv", "its modules are not known"),
    ],
)
def test_wrong_sizes_are_named(size: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_sizes("openai-community/gpt2", [size])
