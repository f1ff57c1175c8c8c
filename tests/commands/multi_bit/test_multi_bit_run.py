"""Latents get several thresholds, checked on states with known levels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands import level_entropy, level_thresholds, with_levels
from sae_binary_ext.measure import refit_decoder
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)

WIDTH, TOKENS = 6, 4001


def identity_coder(**fields: Any) -> BinarySAE:
    """A coder whose pre-activations are the input's dimensions; thresholds rise from 0.5."""
    config = BinarySAEConfig(
        d_in=WIDTH, d_sae=WIDTH, selection="threshold", apply_b_dec_to_input=False, **fields
    )
    coder = BinarySAE(config)
    with torch.no_grad():
        coder.W_enc.copy_(torch.eye(WIDTH))
        coder.b_enc.zero_()
        coder.log_threshold.copy_((0.5 + 0.05 * torch.arange(WIDTH)).log())
        coder.W_dec.copy_(torch.eye(WIDTH))
        coder.b_dec.zero_()
    return coder


@pytest.fixture
def states() -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_thresholds_divide_the_active_tokens_evenly(states: Tensor):
    coder = identity_coder()
    states[:, 2] = -1  # latent 2 is never active
    thresholds = level_thresholds(coder, states.split(700), 4)
    torch.testing.assert_close(thresholds[0], coder.log_threshold.exp())
    for latent in {*range(WIDTH)} - {2}:
        values = states[:, latent]
        passed = torch.stack([(values > t).sum() for t in thresholds[:, latent]])
        assert (passed[:-1] > passed[1:]).all()
        # The levels pass 3/4, 1/2 and 1/4 of the active tokens, up to about one token.
        shares = torch.tensor([1, 0.75, 0.5, 0.25]) * passed[0]
        assert (passed - shares).abs().max() <= 1.5
    leveled = with_levels(coder, thresholds)
    codes = leveled.encode(states).reshape(TOKENS, 4, WIDTH)
    assert not codes[:, :, 2].any()
    assert torch.equal(codes[:, 0], coder.encode(states))


def test_levels_are_nothing_until_their_rows_are_fitted(states: Tensor):
    coder = identity_coder()
    leveled = with_levels(coder, level_thresholds(coder, [states], 3))
    assert leveled.cfg.d_sae == 3 * WIDTH
    assert torch.equal(leveled(states), coder(states))

    refit_decoder(coder, [(states, states)])
    refit_decoder(leveled, [(states, states)])
    one, three = ((each(states) - states).square().sum().item() for each in (coder, leveled))
    assert three < 0.95 * one


def test_what_has_three_steps_needs_three_levels():
    """Three levels code inputs of 0, 1, 2 or 3 exactly, and fewer levels do not."""
    generator = torch.Generator().manual_seed(0)
    # All four values are equally frequent, so the thresholds fall between them.
    steps = torch.arange(4.0).repeat(500)
    states = torch.stack([steps[torch.randperm(2000, generator=generator)] for _ in range(WIDTH)])
    states = states.T
    coder = identity_coder()
    errors = {}
    for levels in (1, 2, 3):
        leveled = with_levels(coder, level_thresholds(coder, [states - 0.25], levels))
        # The pull is small, so that decoder rows can move far from their old values.
        refit_decoder(leveled, [(states, states)], pull=1e-3)
        errors[levels] = (leveled(states) - states).square().mean().item()
    assert errors[1] > 0.3
    assert errors[2] > 0.05
    assert errors[3] < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent_that_was_never_active_stays_so(states: Tensor, dtype: torch.dtype):
    coder = identity_coder()
    thresholds = level_thresholds(coder, [states - 100], 2)
    leveled = with_levels(coder, thresholds).to(dtype)
    assert not leveled.encode(1e4 + states.to(dtype))[:, WIDTH:].any()
    assert leveled.log_threshold.isfinite().all()


def test_a_transcoder_has_levels_too(states: Tensor):
    config = BinaryTranscoderConfig(d_in=WIDTH, d_sae=WIDTH, d_out=3, selection="threshold")
    coder = BinaryTranscoder(config)
    with torch.no_grad():
        coder.W_enc.copy_(torch.eye(WIDTH))
        coder.W_dec.normal_()
    leveled = with_levels(coder, level_thresholds(coder, [states], 2))
    torch.testing.assert_close(leveled(states), coder(states))
    assert leveled.encode(states).sum() > 1.3 * coder.encode(states).sum()


def test_levels_are_told_by_their_number():
    # Latent 0 has four equally likely levels; latent 1 is fair and has no second level.
    rates = torch.tensor([[0.75, 0.5], [0.5, 0.0], [0.25, 0.0]], dtype=torch.float64)
    assert level_entropy(rates) == pytest.approx(2 + 1)
    single = torch.tensor([[0.1]], dtype=torch.float64)
    entropy = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    assert level_entropy(single) == pytest.approx(entropy)
    # Because of rounding, a token may pass only the second of two equal thresholds.
    rates = torch.tensor([[0.5], [0.5 + 1e-9]], dtype=torch.float64)
    assert level_entropy(rates) == pytest.approx(1)


def test_latents_that_compete_have_no_levels(states: Tensor):
    config = BinarySAEConfig(d_in=WIDTH, d_sae=WIDTH, k=2)
    with pytest.raises(ValueError, match="selection='topk'"):
        level_thresholds(BinarySAE(config), [states], 2)
    with pytest.raises(ValueError, match="levels=0"):
        level_thresholds(identity_coder(), [states], 0)
