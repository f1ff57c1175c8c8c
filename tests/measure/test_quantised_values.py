"""Bits of quantised values: a toy whose answer is known, real coders, and codes without values."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TemporalSAE, TemporalSAEConfig

from sae_binary_ext.measure import value_bits
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig


def identity_coder(*scales: float) -> StandardSAE:
    """ReLU codes of four inputs; latent j's decoder row has the norm 1 / scales[j], or 1."""
    scale = torch.tensor(scales or (1.0,) * 4)
    coder = StandardSAE(StandardSAEConfig(d_in=4, d_sae=4, apply_b_dec_to_input=False))
    coder.load_state_dict(
        {
            "W_enc": torch.diag(scale),
            "W_dec": torch.diag(1 / scale),
            "b_enc": torch.zeros(4),
            "b_dec": torch.zeros(4),
        }
    )
    return coder


def test_values_on_a_grid_take_the_bits_of_the_grid():
    # Each of four latents has one of eight equally likely values: three bits each, twelve a token.
    inputs = torch.cartesian_prod(*[torch.arange(1.0, 9.0)] * 4)
    # The error that is allowed is small: two levels of the grid may not become one.
    targets = inputs + 0.05
    assert value_bits(identity_coder(), inputs, targets) == pytest.approx(12.0)


def test_rescaled_latents_take_the_same_bits():
    torch.manual_seed(0)
    inputs = torch.rand(500, 4) * 5
    targets = inputs + torch.randn(500, 4) * 0.1
    bits = value_bits(identity_coder(), inputs, targets)
    assert value_bits(identity_coder(7.0, 0.2, 1.0, 30.0), inputs, targets) == pytest.approx(
        bits, rel=1e-3
    )


def test_a_larger_tolerance_takes_fewer_bits_and_keeps_its_promise():
    torch.manual_seed(0)
    inputs = torch.rand(2000, 4) * 5
    targets = inputs + torch.randn(2000, 4) * 0.1
    bits = [value_bits(identity_coder(), inputs, targets, tolerance) for tolerance in (0.01, 0.1)]
    # Noise of step^2 / 12 in each value is a hundredth or a tenth of the error 0.1^2: the steps are
    # 0.035 and 0.11. Values are uniform, so they take log2(5 / step) bits.
    assert bits == pytest.approx([4 * 7.2, 4 * 5.5], rel=0.05)


def test_bits_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch):
    # A coder with layer_norm decodes with the mean and deviation of the tokens it saw last.
    torch.manual_seed(0)
    config = StandardSAEConfig(d_in=4, d_sae=8, normalize_activations="layer_norm")
    coder, inputs = StandardSAE(config), torch.randn(60, 4)
    with torch.no_grad():
        coder.W_enc.normal_()
        coder.W_dec.normal_()
    whole = value_bits(coder, inputs, inputs)
    monkeypatch.setattr("sae_binary_ext.measure.quantised_values.CODES_AT_ONCE", 70)
    assert 0 < whole == pytest.approx(value_bits(coder, inputs, inputs))


def test_a_coder_that_reads_sequences_takes_rows():
    torch.manual_seed(0)
    coder = TemporalSAE(TemporalSAEConfig(d_in=4, d_sae=8, n_heads=1, bottleneck_factor=2))
    rows, where = torch.randn(6, 10, 4), torch.arange(10) < torch.tensor([[10, 4, 1] * 2]).T
    found = value_bits(coder, rows, rows[where], where=where)
    assert found > 0
    # Positions that do not count come last in their rows, so no token that counts sees them.
    others = torch.where(where[..., None], rows, 10 * torch.randn_like(rows))
    assert value_bits(coder, others, rows[where], where=where) == pytest.approx(found)


def test_codes_of_0_and_1_have_no_values():
    torch.manual_seed(0)
    coder = BinarySAE(BinarySAEConfig(d_in=4, d_sae=8, k=2))
    inputs = torch.randn(50, 4)
    assert value_bits(coder, inputs, inputs) == 0.0
