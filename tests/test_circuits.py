"""Coders as circuit-tracer's transcoders: edges add up to margins and predict cleared bits.

`make test-circuits` runs these tests, in an environment that has circuit-tracer.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_binary_ext.checkpoints import CheckpointError
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig, BinaryTranscoder
from tests.layer_coders import LAYERS, WIDTH, layer_coder
from tests.small_models import VOCABULARY

pytest.importorskip("circuit_tracer")

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import TranscoderSet

from sae_binary_ext.circuits import transcoder_set

PROMPT = "w2 w3 w4 w5 w6 w7"
KINDS = ("topk", "groupmax", "threshold", "gumbel", "stock")


def margins(coder: Any, x: Tensor) -> Tensor:
    """What decides whether a latent fires: margins of a binary coder, else pre-activations."""
    pre = x @ coder.W_enc + coder.b_enc
    return pre - coder.log_threshold.exp() if isinstance(coder, BinaryTranscoder) else pre


def open_nnsight(folder: Path, coders: TranscoderSet) -> Any:
    return ReplacementModel.from_pretrained_and_transcoders(
        str(folder), coders, backend="nnsight", device=torch.device("cpu")
    )


def open_transformer_lens(folder: Path, coders: TranscoderSet) -> Any:
    """The folder's Llama as a HookedTransformer, which loads no folders by itself."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = HookedTransformerConfig(
        model_name="tiny-llama",
        n_layers=LAYERS,
        d_model=WIDTH,
        n_heads=2,
        d_head=WIDTH // 2,
        d_mlp=32,
        d_vocab=VOCABULARY,
        n_ctx=32,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        eps=plain.config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=WIDTH // 2,
        rotary_adjacent_pairs=False,
        final_rms=True,
        original_architecture="LlamaForCausalLM",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = convert_llama_weights(plain, config)
    model = HookedTransformer(config, tokenizer=tokenizer)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    replacement = TransformerLensReplacementModel.__new__(TransformerLensReplacementModel)
    replacement.__dict__.update(model.__dict__)
    replacement._configure_replacement_model(coders)
    return replacement


@dataclass
class Traced:
    """A prompt's graph, and the model's own activations at each MLP, [layers, tokens, d]."""

    coders: list[Any]
    model: Any
    tokens: Tensor
    graph: Graph
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(
        cls,
        folder: Path,
        coders: list[Any],
        prompt: str,
        open_model: Any = open_nnsight,
        **settings: Any,
    ) -> "Traced":
        model = open_model(folder, transcoder_set(coders))
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
