"""Graphs of SmolLM2 through transcoders of its 30 layers (`make test-circuits`)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_binary_ext.bundled.wikipedia import read_held_out_articles
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.saelens import (
    BinaryTranscoderTrainingSAE,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAE,
    TopKTranscoderTrainingSAEConfig,
)

pytest.importorskip("circuit_tracer")

from tests.traced import Traced

pytestmark = pytest.mark.integration
PROMPT = "The Eiffel Tower is in"
ARCHITECTURES = {
    "binary": (BinaryTranscoderTrainingSAE, BinaryTranscoderTrainingSAEConfig),
    "stock": (TopKTranscoderTrainingSAE, TopKTranscoderTrainingSAEConfig),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def traced(
    request: pytest.FixtureRequest, smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Traced:
    """Coders are as their first batch sets them: their codes are text's, without any training."""
    training_class, config_class = ARCHITECTURES[request.param]
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    text = next(iter(read_held_out_articles()))
    tokens = AutoTokenizer.from_pretrained(smollm2_folder)(text, return_tensors="pt").input_ids
    coders: list[Any] = []

    def fit(layer: int, x: torch.Tensor, target: torch.Tensor) -> None:
        coder = training_class(config_class(d_in=576, d_out=576, d_sae=1152, k=4))
        if request.param == "stock":
            coder.W_dec.data.normal_(std=0.2)
        coder.fit_to_first_batch(torch.cat([x[0, 1:], target[0, 1:]], dim=1))
        metadata = coder.cfg.metadata
        metadata.model_name = "SmolLM2"
        metadata.hook_name = f"model.layers.{layer}.post_attention_layernorm"
        metadata.hook_name_out = f"model.layers.{layer}.mlp"
        folder = tmp_path_factory.mktemp("coder")
        coder.save_inference_model(folder)
        coders.append(load_coder(folder))

    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda _, x, y, layer=layer: fit(layer, x[0], y))
    with torch.no_grad():
        model(tokens[:, :256])
    # All latents are attributed: a graph has no edges from latents that it leaves out.
    return Traced.of(smollm2_folder, coders, PROMPT)


def test_edges_add_up_to_the_margin(traced: Traced):
    traced.check_edges(slice(None, None, 7))


def test_a_cleared_latent_lowers_margins_by_its_edges(traced: Traced):
    traced.check_cleared(3)
