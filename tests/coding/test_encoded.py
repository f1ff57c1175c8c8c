from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import encode as encoding
from sae_binary_ext.coding import indexed, parts
from sae_binary_ext.coding.deferred import Deferred
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.encoded import (
    DenseCodes,
    PickedCodes,
    ThresholdCodes,
    encode_batch,
    encode_codes,
    encode_deferring,
)
from sae_binary_ext.coding.selection import CodeRule
from tests import reference
from tests.cases import each_rule

TOKENS, D_IN, LATENTS = 40, 7, 108  # 6 groups; enough latents for the index form


@each_rule
def test_every_form_gives_the_reference_codes_reconstruction_and_firings(rule: CodeRule):
    x = torch.randn(TOKENS, D_IN, dtype=torch.float64)
    weight = torch.randn(D_IN, LATENTS, dtype=torch.float64)
    bias, log_threshold = torch.randn(2, LATENTS, dtype=torch.float64)
    decoder = torch.randn(LATENTS, D_IN, dtype=torch.float64)
    origin = torch.randn(D_IN, dtype=torch.float64)

    encoded, _ = encode_batch(Encoder(x, weight, bias, log_threshold, origin, rule))
    expected = reference.codes(x @ weight + bias, log_threshold, rule).round()

    form = {"gumbel": DenseCodes, "threshold": ThresholdCodes}.get(rule.selection, PickedCodes)
    assert isinstance(encoded, ThresholdCodes if rule.surrogate_latents == "all" else form)
    assert torch.equal(encoded.dense(), expected)
    codes = encoded.deferred()
    assert torch.equal(codes.sum(0), expected.sum(0))
    assert torch.equal(codes.bool().sum(1), expected.bool().sum(1))
    assert isinstance(codes, Deferred) == (form is not DenseCodes)
    assert not (isinstance(codes, Deferred) and codes.is_computed)
    assert torch.equal(codes.detach(), expected)
    torch.testing.assert_close(encoded.decode(decoder, origin), expected @ decoder + origin)
    torch.testing.assert_close(encoded.firing_rates(), expected.mean(0))


# Of what a loss may take its gradient back through: any of these, or several at once.
OUTPUTS = ("reconstruction", "rates", "codes", "pre-activations")
TAKEN = [*((name,) for name in OUTPUTS), OUTPUTS]
# How codes and pre-activations are made.
ENCODES = {
    "at once": encode_batch,
    "deferred": encode_deferring,
    "codes alone": lambda encoder: (encode_codes(encoder), encoder.pre_activations()),
}
# How the products of threshold codes are taken, by share of ones.
WAYS = {"sums of rows": 1.0, "matrix products": 0.0}


def parameters() -> list[Tensor]:
    """x, encoder weight and bias, log threshold, origin, decoder weight and bias."""
    generator = torch.Generator().manual_seed(0)
    vector, narrow = (LATENTS,), (D_IN,)
    shapes = ((TOKENS, D_IN), (D_IN, LATENTS), vector, vector, narrow, (LATENTS, D_IN), narrow)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


@each_rule
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encode", ENCODES)
@pytest.mark.parametrize("taken", TAKEN, ids=lambda taken: "all" if len(taken) > 1 else taken[0])
def test_every_gradient_is_the_reference_s_whatever_the_loss_is_of(
    rule: CodeRule,
    taken: tuple[str, ...],
    encode: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(indexed, "SPARSE_DENSITY", WAYS[way])
    monkeypatch.setattr(parts, "FEWEST_ROWS", 3)
    monkeypatch.setattr(parts, "PART", 1)
    monkeypatch.setattr(encoding, "ROWS", 9)
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
        "codes": encoded.deferred() if encode == "deferred" else encoded.dense(),
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


def an_encoder(rule: CodeRule, dtype: torch.dtype = torch.float64) -> Encoder:
    x, weight, bias, log_threshold, origin, *_ = (
        values.detach().to(dtype).requires_grad_() for values in parameters()
    )
    return Encoder(x.detach() - origin.detach(), weight, bias, log_threshold, origin, rule)


@pytest.mark.parametrize("learning", ["selected", "near"])
def test_deferred_pre_activations_are_those_of_the_weights_that_made_the_codes(learning: str):
    encoder = an_encoder(CodeRule("topk", 6, surrogate_latents=learning))
    expected = encoder.pre_activations().detach()
    encoded, pre = encode_deferring(encoder)
    assert isinstance(pre, Deferred)
    encoded.dense().sum().backward()
    with torch.no_grad():
        encoder.weight.add_(1)
        encoder.bias.add_(1)
    assert not pre.is_computed
    torch.testing.assert_close(pre.detach(), expected)


@pytest.mark.parametrize(
    "rule", [CodeRule("topk", 60), CodeRule("threshold"), CodeRule("gumbel", 6)]
)
def test_pre_activations_that_codes_are_made_of_are_not_deferred(rule: CodeRule):
    _, pre = encode_deferring(an_encoder(rule))
    assert not isinstance(pre, Deferred)


def test_under_autocast_nothing_is_deferred():
    encoder = an_encoder(CodeRule("topk", 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        encoded, pre = encode_deferring(encoder)
        at_once, expected = encode_batch(encoder)
    assert not isinstance(pre, Deferred)
    assert torch.equal(pre, expected)
    assert torch.equal(encoded.dense(), at_once.dense())
