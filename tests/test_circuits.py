"""Coders as circuit-tracer's transcoders: edges add up to margins, and cleared bits act as they say.

`make test-circuits` runs these tests, in an environment that has circuit-tracer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from tests.small_models import VOCABULARY, save_tokenizer

pytest.importorskip("circuit_tracer")

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import Graph

from sae_binary_ext.circuits import transcoder_set

LAYERS, WIDTH, LATENTS, K = 3, 16, 64, 8
PROMPT = "w2 w3 w4 w5 w6 w7"
KINDS = ("topk", "groupmax", "threshold", "gumbel", "stock")


def make_coder(kind: str, layer: int, skip: bool) -> Any:
    """A random transcoder of a layer's MLP: binary with a selection, or stock TopK."""
    torch.manual_seed(layer)
    sizes: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": K, "skip_connection": skip}
    if kind == "stock":
        coder = TopKTranscoder(TopKTranscoderConfig(**sizes, rescale_acts_by_decoder_norm=False))
    else:
        coder = BinaryTranscoder(BinaryTranscoderConfig(**sizes, selection=kind))
        coder.log_threshold.data.normal_(-1, 0.5)
    for parameter in (coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec, coder.W_skip):
        if parameter is not None:
            parameter.data.normal_(std=0.2)
    metadata = coder.cfg.metadata
    metadata.model_name = "tiny-llama"
    metadata.hook_name = f"model.layers.{layer}.post_attention_layernorm"
    metadata.hook_name_out = f"model.layers.{layer}.mlp"
    return coder


def margins(coder: Any, x: Tensor) -> Tensor:
    """What decides whether a latent fires: margins of a binary coder, else pre-activations."""
    pre = x @ coder.W_enc + coder.b_enc
    return pre - coder.log_threshold.exp() if isinstance(coder, BinaryTranscoder) else pre


@dataclass
class Traced:
    """A prompt's graph, and the model's own activations at each layer's MLP, [layers, tokens, d]."""

    coders: list[Any]
    model: Any
    tokens: Tensor
    graph: Graph
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, folder: Path, coders: list[Any], prompt: str, **settings: Any) -> "Traced":
        model = ReplacementModel.from_pretrained_and_transcoders(
            str(folder), transcoder_set(coders), backend="nnsight", device=torch.device("cpu")
        )
        tokens = model.ensure_tokenized(prompt)
        graph = attribute(tokens, model, batch_size=32, **settings)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        seen: list[tuple[Tensor, Tensor]] = []
        for layer in plain.model.layers:
            layer.mlp.register_forward_hook(lambda _, x, y: seen.append((x[0][0], y[0])))
        with torch.no_grad():
            plain(tokens[None])
        inputs, outputs = (torch.stack(each) for each in zip(*seen, strict=True))
        return cls(coders, model, tokens, graph, inputs, outputs)

    def edges_of_biases(self, latents: Tensor) -> Tensor:
        """What decoder biases, and MLPs at the first position, add to latents [n, 3]: no edges."""
        context = self.model.setup_attribution(self.tokens)
        context.token_vectors *= 0
        context.decoder_vecs *= 0
        for layer, coder in enumerate(self.coders):
            context.error_vectors[layer] = coder.b_dec
            first = self.outputs[layer, 0]
            if coder.W_skip is not None:
                first = first - coder.W_skip @ self.inputs[layer, 0]
            context.error_vectors[layer, 0] = first
        self.model.run_forward_pass(self.tokens, len(latents), context)
        vectors = [self.coders[layer].W_enc[:, latent] for layer, _, latent in latents.tolist()]
        rows = context.compute_batch(latents[:, 0], latents[:, 1], torch.stack(vectors).detach())
        return rows.sum(1)

    def own_margins(self) -> Tensor:
        pairs = zip(self.coders, self.inputs, strict=True)
        return torch.stack([margins(coder, x) for coder, x in pairs]).detach()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=[(kind, skip) for kind in KINDS for skip in (False, True)])
def traced(tiny: Path, request: pytest.FixtureRequest) -> Traced:
    kind, skip = request.param
    return Traced.of(tiny, [make_coder(kind, layer, skip) for layer in range(LAYERS)], PROMPT)


def test_codes_are_the_coders_own(traced: Traced):
    codes = traced.model.get_activations(traced.tokens)[1]
    with torch.no_grad():
        own = [coder.encode(x) for coder, x in zip(traced.coders, traced.inputs, strict=True)]
    # circuit-tracer leaves out the first position, which is an attention sink.
    assert codes[:, 1:].sum() > 0
    torch.testing.assert_close(codes[:, 1:], torch.stack(own)[:, 1:], atol=1e-5, rtol=1e-5)
    if isinstance(traced.coders[0], BinaryTranscoder):
        assert set(codes.unique().tolist()) == {0.0, 1.0}


def test_edges_add_up_to_the_margin(traced: Traced):
    latents = traced.graph.active_features
    edges = traced.graph.adjacency_matrix[: len(latents)].sum(1)
    total = edges + traced.edges_of_biases(latents)
    zeros = torch.zeros(1, WIDTH)
    constant = torch.stack([margins(coder, zeros)[0] for coder in traced.coders]).detach()
    expected = traced.own_margins()[latents.unbind(1)] - constant[latents[:, 0], latents[:, 2]]
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-4)


def test_a_cleared_latent_lowers_margins_by_its_edges(traced: Traced):
    graph, every = traced.graph, range(LAYERS)
    before = traced.model.get_activations(traced.tokens, apply_activation_function=False)[1]
    strength = graph.adjacency_matrix[: len(graph.active_features), : len(graph.active_features)]
    for source in strength.abs().sum(0).topk(3).indices.tolist():
        place = tuple(graph.active_features[source].tolist())
        after = traced.model.feature_intervention(
            traced.tokens,
            [(*place, 0.0)],
            constrained_layers=every,
            apply_activation_function=False,
        )[1]
        lost = (before - after)[graph.active_features.unbind(1)]
        torch.testing.assert_close(lost, strength[:, source], atol=1e-5, rtol=1e-3)
