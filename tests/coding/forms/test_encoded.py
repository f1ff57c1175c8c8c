from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.forms import margins
from sae_binary_ext.coding.forms.encoded import (
    DenseCodes,
    PickedCodes,
    ThresholdCodes,
    encode_batch,
    encode_codes,
)
from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.coding.selection import CodeRule
from tests.cases import each_code_rule, each_gradient_case

TOKENS, D_IN, LATENTS = 40, 7, 108  # 108 latents allow 6 groups and the index form


@each_code_rule
def test_every_form_gives_the_reference_codes_reconstruction_and_firings(rule: CodeRule):
    x = torch.randn(TOKENS, D_IN, dtype=torch.float64)
    weight = torch.randn(D_IN, LATENTS, dtype=torch.float64)
    bias, log_threshold = torch.randn(2, LATENTS, dtype=torch.float64)
    decoder = torch.randn(LATENTS, D_IN, dtype=torch.float64)
    origin = torch.randn(D_IN, dtype=torch.float64)

    encoded, _ = encode_batch(Encoder(x, weight, bias, log_threshold, origin, rule))
    expected = reference.codes(x @ weight + bias, log_threshold, rule).round()

    form = PickedCodes if rule.kind.pick else DenseCodes
    assert isinstance(encoded, ThresholdCodes if rule.every_latent_learns else form)
    assert torch.equal(encoded.dense(), expected)
    codes, pre = encoded.for_host()
    # Half of the codes of the other rules are 1, so they are not sparse.
    few = isinstance(encoded, PickedCodes) or rule.surrogate_latents == "all"
    assert codes.is_sparse == few
    assert torch.equal(codes.to_dense(), expected)
    assert torch.equal(codes.bool().float().sum(0), expected.float().sum(0))
    held = pre.to_dense()
    stored = held != 0
    torch.testing.assert_close(held[stored], (x @ weight + bias)[stored])
    assert (stored >= (expected == 1)).all()
    torch.testing.assert_close(encoded.decode(decoder, origin), expected @ decoder + origin)
    torch.testing.assert_close(encoded.firing_rates(), expected.mean(0))


ENCODES = {
    "at once": encode_batch,
    "codes alone": lambda encoder: (encode_codes(encoder), encoder.pre_activations()),
}
# Values of SPARSE_DENSITY, the share of ones up to which rows are summed.
WAYS = {"sums of rows": 1.0, "matrix products": 0.0}


def parameters() -> list[Tensor]:
    """Returns x, encoder weight and bias, log threshold, origin, decoder weight and bias."""
    generator = torch.Generator().manual_seed(0)
    vector, narrow = (LATENTS,), (D_IN,)
    shapes = ((TOKENS, D_IN), (D_IN, LATENTS), vector, vector, narrow, (LATENTS, D_IN), narrow)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


@each_gradient_case
def test_each_gradient_is_the_reference_s_for_a_loss_of_any_output(
    rule: CodeRule, taken: tuple[str, ...], encode: str, way: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "SPARSE_DENSITY", WAYS[way])
    monkeypatch.setattr(processor, "FEWEST_ROWS", 3)
    monkeypatch.setattr(processor, "PART", 1)
    monkeypatch.setattr(margins, "ROWS", 9)
    monkeypatch.setattr(processor, "BLOCK_TOKENS", 9)
    shapes = {
        "reconstruction": (TOKENS, D_IN),
        "rates": (LATENTS,),
        "codes": (TOKENS, LATENTS),
        "pre-activations": (TOKENS, LATENTS),
    }
    incoming = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def gradients(outputs: dict[str, Tensor], of: list[Tensor]) -> list[Tensor]:
        loss = sum(((outputs[name] * incoming[name]).sum() for name in taken), torch.zeros(()))
        found = torch.autograd.grad(loss, of, allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(of, found, strict=True)
        ]

    ours = parameters()
    x, weight, bias, log_threshold, origin, decoder, decoder_bias = ours
    encoder = Encoder(x - origin.detach(), weight, bias, log_threshold, origin, rule)
    encoded, our_pre = ENCODES[encode](encoder)
    mine: dict[str, Any] = {
        "reconstruction": encoded.decode(decoder, decoder_bias),
        "rates": encoded.firing_rates(),
        "codes": encoded.dense(),
        "pre-activations": our_pre,
    }
    theirs = parameters()
    x, weight, bias, log_threshold, origin, decoder, decoder_bias = theirs
    pre = (x - origin) @ weight + bias
    codes = reference.codes(pre, log_threshold, rule)
    expected = {
        "reconstruction": codes @ decoder + decoder_bias,
        "rates": codes.mean(0),
        "codes": codes,
        "pre-activations": pre,
    }
    for name in taken:
        torch.testing.assert_close(mine[name], expected[name])
    for found, wanted in zip(gradients(mine, ours), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_rates_without_a_reconstruction_have_the_same_gradient():
    incoming = torch.randn(LATENTS, dtype=torch.float64)
    found: list[Tensor] = []
    for decodes_first in (True, False):
        x, weight, bias, log_threshold, origin, decoder, decoder_bias = parameters()
        rule = CodeRule("threshold")
        encoded, _ = encode_batch(Encoder(x, weight, bias, log_threshold, origin, rule))
        if decodes_first:
            encoded.decode(decoder, decoder_bias)
        (encoded.firing_rates() * incoming).sum().backward()
        assert weight.grad is not None
        found.append(weight.grad)
    torch.testing.assert_close(*found)


def test_rare_threshold_codes_are_sparse_for_the_host():
    x, weight, bias, log_threshold, origin, *_ = parameters()
    encoder = Encoder(x, weight, bias - 6, log_threshold, origin, CodeRule("threshold"))
    encoded, expected = encode_batch(encoder)
    codes, pre = encoded.for_host()
    assert codes.is_sparse
    assert 0 < codes.sum() < 0.15 * codes.numel()
    assert torch.equal(codes.to_dense(), encoded.dense().detach())
    assert torch.equal(codes.bool().float().sum(0), codes.to_dense().float().sum(0))
    assert torch.equal(pre, expected.detach())
