from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.measure import measure, refit_decoder
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)

D_IN, D_OUT, LATENTS, TOKENS = 6, 4, 24, 400
SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": LATENTS, "k": 4}
CODERS = {
    "plain": lambda: BinarySAE(BinarySAEConfig(**SIZES, apply_b_dec_to_input=False)),
    "subtracting b_dec": lambda: BinarySAE(BinarySAEConfig(**SIZES)),
    "normalising": lambda: BinarySAE(BinarySAEConfig(**SIZES, normalize_activations="layer_norm")),
    "threshold": lambda: BinarySAE(BinarySAEConfig(**SIZES, selection="threshold")),
    "transcoder": lambda: BinaryTranscoder(BinaryTranscoderConfig(**SIZES, d_out=D_OUT)),
    "skip transcoder": lambda: BinaryTranscoder(
        BinaryTranscoderConfig(**SIZES, d_out=D_OUT, skip_connection=True)
    ),
}
each_coder = pytest.mark.parametrize("kind", CODERS)


def made(kind: str) -> Any:
    torch.manual_seed(0)
    coder: Any = CODERS[kind]()
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.normal_(std=0.3 if name == "W_skip" else 1.0)
    return coder


def activations(coder: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, D_IN, generator=generator)
    if "d_out" not in vars(coder.cfg):
        return x, x
    return x, torch.tanh(x @ torch.randn(D_IN, D_OUT, generator=generator)) + 1


def batches(coder: Any) -> list[tuple[Tensor, Tensor]]:
    x, target = activations(coder)
    return list(zip(x.split(150), target.split(150), strict=True))


@each_coder
def test_the_codes_stay_and_the_error_has_no_slope_left(kind: str):
    coder = made(kind)
    x, target = activations(coder)
    codes, before = coder.encode(x), measure(coder, x, target)
    assert refit_decoder(coder, batches(coder), pull=1e-6).tokens == TOKENS

    assert torch.equal(coder.encode(x), codes)
    assert measure(coder, x, target).fvu < before.fvu
    if kind == "normalising":  # its error is least on normalised tokens
        x = x - x.mean(-1, keepdim=True)
        x = target = x / (x.std(-1, keepdim=True) + 1e-5)
        coder.cfg.normalize_activations = "none"
        coder._setup_activation_normalization()
    (coder(x) - target).square().sum().backward()
    fired = codes.any(0)
    torch.testing.assert_close(
        coder.W_dec.grad[fired], torch.zeros_like(coder.W_dec)[fired], atol=2e-3, rtol=0
    )
    if kind == "skip transcoder":
        torch.testing.assert_close(
            coder.W_skip.grad, torch.zeros_like(coder.W_skip), atol=2e-3, rtol=0
        )


def test_a_bias_that_the_input_loses_stays():
    for kind, stays in {"subtracting b_dec": True, "plain": False, "transcoder": False}.items():
        coder = made(kind)
        bias = coder.b_dec.detach().clone()
        refit_decoder(coder, batches(coder))
        assert torch.equal(coder.b_dec, bias) is stays, kind


def test_a_strong_pull_leaves_the_decoder_where_it_was():
    coder = made("plain")
    rows = coder.W_dec.detach().clone()
    refit_decoder(coder, batches(coder), pull=1e12)
    torch.testing.assert_close(coder.W_dec.detach(), rows)


@pytest.mark.parametrize("pull", [0.0, -1.0, float("nan")])
def test_a_pull_that_is_not_positive_is_named(pull: float):
    coder = made("plain")
    with pytest.raises(ValueError, match="pull="):
        refit_decoder(coder, batches(coder), pull)


def test_no_activations_are_an_error():
    with pytest.raises(ValueError, match="no activations"):
        refit_decoder(made("plain"), [])
