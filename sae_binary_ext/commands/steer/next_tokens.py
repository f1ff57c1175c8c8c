"""Distributions of the next token, and how far two are apart."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from sae_binary_ext.saelens.splice import HookedModel


def log_probabilities(
    model: HookedModel, tokens: Tensor, positions: list[int] | None = None
) -> Tensor:
    """Log probabilities of the next token, in nats: float32 [rows, positions, vocabulary].

    tokens: int64 [rows, context]. positions: those to return; None for all. The unembedding is
    computed for these alone.
    """

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args if positions is None else (args[0][:, positions], *args[1:])

    run: Any = model
    handle = _unembedding(run).register_forward_pre_hook(select)
    try:
        with torch.no_grad():
            return run(tokens).float().log_softmax(-1)
    finally:
        handle.remove()


def _unembedding(model: Any) -> nn.Module:
    if isinstance(model, HookedTransformer):
        return model.unembed
    inner = model.original_model if isinstance(model, TransformerBridge) else model.model
    return cast(Any, inner).get_output_embeddings()


def divergence(own: Tensor, steered: Tensor) -> Tensor:
    """KL(own || steered), in nats [...], of log probabilities [..., vocabulary]."""
    return (own.exp() * (own - steered)).sum(-1)


def log_probability_of(names: Tensor, log_probability: Tensor) -> Tensor:
    """Log probability that the next token is in each name, in nats [..., names].

    names: int64 [names, tokens], with -1 for no token. log_probability: [..., vocabulary].
    """
    each = log_probability[..., names.clamp_min(0)]
    return each.masked_fill(names < 0, -torch.inf).logsumexp(-1)
