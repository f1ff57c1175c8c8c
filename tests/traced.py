"""A prompt's graph by circuit-tracer, beside the model's own activations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import TranscoderSet
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_binary_ext.circuits import transcoder_set
from sae_binary_ext.saelens import BinaryTranscoder
from tests.layer_coders import hooked_llama


def margins(coder: Any, x: Tensor) -> Tensor:
    """What decides whether a latent fires: margins of a binary coder, else pre-activations."""
    pre = x @ coder.W_enc + coder.b_enc
    return pre - coder.log_threshold.exp() if isinstance(coder, BinaryTranscoder) else pre


def open_nnsight(folder: Path, coders: TranscoderSet) -> Any:
    return ReplacementModel.from_pretrained_and_transcoders(
        str(folder), coders, backend="nnsight", device=torch.device("cpu")
    )


def open_transformer_lens(folder: Path, coders: TranscoderSet) -> Any:
    model = hooked_llama(folder)
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

    def check_edges(self, chosen: slice = slice(None)) -> None:
        """The chosen latents' edges, and what biases add, are their margins less biases."""
        selected = self.graph.selected_features[chosen]
        latents = self.graph.active_features[selected]
        rows = self.graph.adjacency_matrix[: len(self.graph.selected_features)][chosen]
        total = rows.sum(1) + self.edges_of_biases(latents)
        expected = []
        for layer, position, latent in latents.tolist():
            x = torch.stack([self.inputs[layer, position], torch.zeros_like(self.inputs[0, 0])])
            own = margins(self.coders[layer], x)[:, latent]
            expected.append((own[0] - own[1]).detach())
        torch.testing.assert_close(total, torch.stack(expected), atol=1e-5, rtol=1e-4)

    def check_cleared(self, number: int) -> None:
        """If one of the strongest sources is cleared, pre-activations fall by its edges."""
        latents = self.graph.active_features[self.graph.selected_features]
        strength = self.graph.adjacency_matrix[: len(latents), : len(latents)]
        before = self.model.get_activations(self.tokens, apply_activation_function=False)[1]
        for source in strength.abs().sum(0).topk(number).indices.tolist():
            after = self.model.feature_intervention(
                self.tokens,
                [(*latents[source].tolist(), 0.0)],
                constrained_layers=range(len(self.coders)),
                apply_activation_function=False,
            )[1]
            lost = (before - after)[latents.unbind(1)]
            torch.testing.assert_close(lost, strength[:, source], atol=1e-5, rtol=1e-3)
