import math

import pytest
import torch

from sae_binary_ext.coding import reference
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig


def coder_with_known_codes() -> BinarySAE:
    """Latent j fires if input j is above 0.5; latent 3 never fires. Codes decode to themselves."""
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


def test_a_transcoder_is_measured_against_its_targets():
    codes = (torch.rand(5000, 3) < 0.3).float()
    targets = 2 * codes + 0.1 * torch.randn(5000, 3)
    metrics = measure(coder_with_known_codes(), codes, targets)
    error = (targets - codes).double().square().sum()
    variance = (targets - targets.mean(0)).double().square().sum()
    assert metrics.fvu == pytest.approx((error / variance).item(), rel=1e-5)
    assert metrics.rates[:3].tolist() == pytest.approx(codes.mean(0).tolist())
