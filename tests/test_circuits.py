"""Coders as circuit-tracer's transcoders: edges add up to margins and predict cleared bits.

`make test-circuits` runs these tests, in an environment that has circuit-tracer.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_binary_ext.checkpoints import CheckpointError
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig, BinaryTranscoder
from tests.layer_coders import LAYERS, layer_coder

pytest.importorskip("circuit_tracer")

from sae_binary_ext.circuits import transcoder_set
from tests.traced import Traced, open_nnsight, open_transformer_lens

PROMPT = "w2 w3 w4 w5 w6 w7"
KINDS = ("topk", "groupmax", "threshold", "gumbel", "stock")


# Selection or stock coder, skip connection, and the library that runs the model.
CASES = [
    *((kind, False, open_nnsight) for kind in KINDS),
    ("topk", True, open_nnsight),
    ("topk", False, open_transformer_lens),
    ("threshold", True, open_transformer_lens),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[2].__name__}")
def traced(tiny_llama: Path, request: pytest.FixtureRequest) -> Traced:
    kind, skip, open_model = request.param
    coders = [layer_coder(kind, layer, skip) for layer in range(LAYERS)]
    return Traced.of(tiny_llama, coders, PROMPT, open_model)


def test_codes_are_the_coders_own(traced: Traced):
    codes = traced.model.get_activations(traced.tokens)[1]
    with torch.no_grad():
        own = [coder.encode(x) for coder, x in zip(traced.coders, traced.inputs, strict=True)]
    # circuit-tracer leaves out the first position, which is an attention sink.
    assert codes[:, 1:].sum() > 0
    torch.testing.assert_close(codes[:, 1:], torch.stack(own)[:, 1:], atol=1e-5, rtol=1e-5)
    layers = transcoder_set(traced.coders)
    for layer, coder, x in zip(layers, traced.coders, traced.inputs, strict=True):
        torch.testing.assert_close(layer(x), coder(x))
    if isinstance(traced.coders[0], BinaryTranscoder):
        assert set(codes.unique().tolist()) == {0.0, 1.0}


def test_edges_add_up_to_the_margin(traced: Traced):
    traced.check_edges()


def test_a_cleared_latent_lowers_margins_by_its_edges(traced: Traced):
    traced.check_cleared(3)


def test_coders_that_circuit_tracer_cannot_express_are_refused(tmp_path: Path):
    def refuses(told: str, *coders: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(told)):
            transcoder_set(coders)

    first, second = layer_coder("topk", 0), layer_coder("topk", 1)
    refuses("layers [0] have [0] coders", second)
    refuses("layers [1] have [2] coders", first, second, second)
    refuses("layer 1 has", first, layer_coder("topk", 1, skip=True))
    refuses("BinarySAE of None", BinarySAE(BinarySAEConfig(d_in=4, d_sae=8, k=2)))
    second.cfg.normalize_activations = "layer_norm"
    refuses("normalize_activations='layer_norm'", first, second)
    first.cfg.metadata.hook_name = None
    refuses("does not say which layer", first)
    with pytest.raises(CheckpointError, match="ReLU and JumpReLU alone"):
        transcoder_set([layer_coder("topk", 0)]).to_safetensors(str(tmp_path))
