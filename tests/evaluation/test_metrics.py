import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import SAE
from torch import Tensor, nn

from sae_binary_ext.evaluation.metrics import LayerInputSplice, measure
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests import reference


def coder_with_known_codes() -> BinarySAE:
    """Latent j fires where input j is above 0.5; latent 3 never does. Decodes what it encodes."""
    sae = BinarySAE(BinarySAEConfig(d_in=3, d_sae=4, selection="threshold"))
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    with torch.no_grad():
        sae.W_enc.copy_(weight)
        sae.W_dec.copy_(weight.T)
        sae.log_threshold.fill_(math.log(0.5))
    return sae


def test_figures_of_a_coder_whose_codes_are_known():
    codes = torch.zeros(10_000, 3)
    codes[:8000, 0] = 1
    codes[:2000, 1] = 1
    codes[:500, 2] = 1
    noise = 0.1 * torch.randn(10_000, 3)
    activations = codes + noise.clamp(-0.4, 0.4)
    metrics = measure(coder_with_known_codes(), activations)
    error = (activations - codes).double().square().sum()
    variance = (activations - activations.mean(0)).double().square().sum()
    assert metrics.fvu == pytest.approx((error / variance).item(), rel=1e-5)
    assert metrics.explained_variance == pytest.approx(1 - metrics.fvu)
    assert metrics.l0 == pytest.approx(1.05)
    assert (metrics.dead, metrics.dense_10, metrics.dense_50, metrics.latents) == (1, 2, 1, 4)
    assert metrics.rates.tolist() == pytest.approx([0.8, 0.2, 0.05, 0.0])
    assert metrics.entropy_bits == pytest.approx(reference.entropy_bits(codes))


class ToyLanguageModel(nn.Module):
    """Embeds tokens, passes them through one layer, and scores the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.layer = nn.Linear(3, 7)

    def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
        logits = self.layer(self.embed(input_ids))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss)


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_splicing_replaces_the_layers_input_and_leaves_the_first_positions():
    model, rows = ToyLanguageModel(), torch.randint(0, 7, (20, 6))
    splice = LayerInputSplice(model, model.layer, rows, first_position=2)
    coder: SAE[Any] = Doubler()  # type: ignore[assignment]
    losses = splice.losses(coder)

    def loss(factor: float) -> float:
        hidden = model.embed(rows).detach()
        hidden[:, 2:] *= factor
        logits = model.layer(hidden)[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, rows[:, 1:].flatten()).item()

    assert losses.clean == pytest.approx(loss(1.0))
    assert losses.ablated == pytest.approx(loss(0.0))
    assert losses.spliced == pytest.approx(loss(2.0))
    expected = (loss(0.0) - loss(2.0)) / (loss(0.0) - loss(1.0))
    assert losses.recovered == pytest.approx(expected, rel=1e-3)
    assert not model.layer._forward_pre_hooks
