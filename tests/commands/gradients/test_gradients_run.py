"""Surrogate gradients and true losses are checked by hand on small coders."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands.gradients.gradients_run import (
    BUMPS,
    PROMISES,
    _agreement,
    loss_slopes,
    probe_gradients,
)
from sae_binary_ext.saelens import BinaryTrainingSAE, BinaryTrainingSAEConfig

WIDTH, LATENTS, TOKENS = 6, 24, 80


def coder_of(selection: str = "topk", surrogate: str = "sigmoid", **fields: Any) -> Any:
    settings: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": 4, "selection": selection}
    config = BinaryTrainingSAEConfig(**settings | {"surrogate": surrogate} | fields)
    coder = BinaryTrainingSAE(config)
    with torch.no_grad():
        coder.fit_to_first_batch(activations())
    return coder


def activations() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(TOKENS, WIDTH, generator=generator)


def loss_with(coder: Any, x: Tensor, bias: Tensor) -> float:
    """The loss of a coder in float64, if its encoder bias were `bias`."""
    before = coder.b_enc.data.clone()
    coder.b_enc.data.copy_(bias)
    codes = coder.encode(x)
    coder.b_enc.data.copy_(before)
    output = codes.double() @ coder.W_dec.double() + coder.b_dec.double()
    return (output - x.double()).square().sum(1).mean().item()


@pytest.mark.parametrize("selection", ["topk", "groupmax", "threshold"])
def test_slopes_are_those_of_the_loss_with_the_bias_moved(selection: str):
    coder, x = coder_of(selection), activations()
    bumps = torch.linspace(0.1, 0.8, LATENTS)
    latents = torch.tensor([0, 5, 23, 11])
    with torch.no_grad():
        found = loss_slopes(coder, x, latents, bumps)
        for latent, slope in zip(latents.tolist(), found.tolist(), strict=True):
            moved = torch.zeros(LATENTS)
            moved[latent] = bumps[latent]
            rise = loss_with(coder, x, coder.b_enc + moved) - loss_with(
                coder, x, coder.b_enc - moved
            )
            assert slope == pytest.approx(rise / (2 * bumps[latent].item()), rel=1e-4, abs=1e-6)
    assert found.abs().min() > 0


def test_a_slope_counts_the_tokens_that_cross_the_threshold():
    config = BinaryTrainingSAEConfig(d_in=1, d_sae=1, selection="threshold", k=1)
    coder = BinaryTrainingSAE(config)
    x = torch.tensor([[-0.3], [-0.1], [0.2], [0.9]])
    with torch.no_grad():
        for parameter, value in ((coder.W_enc, 1.0), (coder.W_dec, 0.5), (coder.b_enc, 0.0)):
            parameter.fill_(value)
        coder.b_dec.zero_()
        # If the bias rises by 0.25, the second token also fires. If it falls by 0.25, the third is
        # silent. The error of a token is (0.5 - x)^2 if the latent fires, else x^2.
        up = (0.5 + 0.1) ** 2 - 0.1**2
        down = 0.2**2 - (0.5 - 0.2) ** 2
        slopes = loss_slopes(coder, x, torch.tensor([0]), torch.tensor([0.25]))
    assert slopes.item() == pytest.approx((up - down) / 4 / 0.5, rel=1e-5)


def test_latents_with_a_gradient_are_those_within_the_surrogates_width():
    coder, x = coder_of("threshold", "rectangle", surrogate_temperature=0.06), activations()
    with torch.no_grad():
        pre = coder.codes_and_pre_activations(x, noise=False)[1]
        near = (pre - coder.log_threshold.exp()).abs() < 0.03
    share = near.any(0).double().mean().item()
    assert 0.2 < share < 1
    assert probe_gradients(coder, x, 8, 0).latents == pytest.approx(share)


def test_norms_and_fvu_are_those_of_autograd_and_of_the_outputs():
    coder, x = coder_of("threshold"), activations()
    figures = probe_gradients(coder, x, 8, 0)
    coder.zero_grad()
    codes, _ = coder.encode_with_hidden_pre(x)
    loss = (coder.decode(codes) - x).square().sum(1).mean()
    loss.backward()
    assert figures.weight_norm == pytest.approx(coder.W_enc.grad.norm().item(), rel=1e-6)
    assert figures.bias_norm == pytest.approx(coder.b_enc.grad.norm().item(), rel=1e-6)
    variance = (x - x.mean(0)).square().sum(1).mean()
    assert figures.fvu == pytest.approx((loss / variance).item(), rel=1e-6)
    assert list(figures.agreements) == list(BUMPS)


def test_what_is_kept_of_a_step_is_the_fall_of_the_loss_over_the_promise():
    coder, x = coder_of("threshold"), activations()
    figures = probe_gradients(coder, x, 4, 0)
    codes, _ = coder.encode_with_hidden_pre(x)
    loss = (coder.decode(codes) - x).square().sum(1).mean()
    weight, bias = torch.autograd.grad(loss, [coder.W_enc, coder.b_enc])
    for share in PROMISES:
        size = share * loss / (weight.square().sum() + bias.square().sum())
        moved = coder_of("threshold")
        moved.load_state_dict(coder.state_dict())
        with torch.no_grad():
            moved.W_enc.copy_(coder.W_enc - size * weight)
            moved.b_enc.copy_(coder.b_enc - size * bias)
            after = (moved.decode(moved.encode(x)) - x).square().sum(1).mean()
        assert figures.kept[share] == pytest.approx(
            ((loss - after) / (share * loss)).item(), rel=1e-3
        )


def test_a_probe_changes_nothing():
    coder, x = coder_of("topk"), activations()
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    state = torch.get_rng_state()
    first = probe_gradients(coder, x, 8, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())
    assert all(parameter.grad is None for parameter in coder.parameters())
    assert probe_gradients(coder, x, 8, 0) == first


def test_agreement_is_1_with_itself_whatever_the_scale_and_chance_with_noise():
    slopes = torch.randn(2000, dtype=torch.float64)
    same, scaled = _agreement(slopes, slopes), _agreement(3 * slopes, slopes)
    assert same.cosine.value == pytest.approx(1) == scaled.cosine.value
    assert scaled.signs.value == 1
    assert same.signs.value == same.moved == 1
    opposite = _agreement(-slopes, slopes)
    assert opposite.cosine.value == pytest.approx(-1)
    assert opposite.signs.value == 0
    noise = _agreement(torch.randn(2000), slopes)
    assert noise.cosine.low < 0 < noise.cosine.high
    assert noise.signs.value == pytest.approx(0.5, abs=0.05)


def test_latents_that_change_nothing_have_no_sign():
    gradient = torch.tensor([1.0, -1.0, 2.0, 0.0])
    slopes = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = _agreement(gradient, slopes)
    assert found.moved == 0.75
    assert found.signs.value == 0.5
