import pytest
import torch

from sae_binary_ext.coding import (
    CodeRule,
    Encoder,
    binarise,
    packed_width,
    pre_activations,
    reference,
    scatter_codes,
    unpack,
)
from sae_binary_ext.coding.forms import infer_indices, infer_packed, margins
from tests.cases import LATENTS, each_code_rule
from tests.limits import little_memory

D_IN = 7


@each_code_rule
@pytest.mark.parametrize("lead", [(40,), (4, 10), (1,), ()], ids=str)
@pytest.mark.parametrize("rows", [1024, 9])
def test_both_forms_hold_the_reference_codes(
    rule: CodeRule, lead: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(margins, "ROWS", rows)
    x = torch.randn(*lead, D_IN, dtype=torch.float64)
    weight = torch.randn(D_IN, LATENTS, dtype=torch.float64).requires_grad_()
    bias, log_threshold = torch.randn(2, LATENTS, dtype=torch.float64)
    encoder = Encoder(x, weight, bias, log_threshold, torch.zeros(D_IN), rule)
    expected = reference.codes((x @ weight + bias).view(-1, LATENTS), log_threshold, rule)
    expected = expected.round().view(*lead, LATENTS)

    codes, index = infer_indices(encoder)
    packed = infer_packed(encoder)

    assert torch.equal(scatter_codes(codes, index, LATENTS), expected)
    assert codes.sum() == expected.sum()
    assert torch.equal(unpack(packed, LATENTS, torch.float64), expected)
    assert not codes.requires_grad


@each_code_rule
@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 5)], ids=str)
def test_no_tokens_have_no_codes(rule: CodeRule, lead: tuple[int, ...]):
    x, weight = torch.randn(*lead, D_IN), torch.randn(D_IN, LATENTS)
    bias, log_threshold = torch.randn(2, LATENTS)
    encoder = Encoder(x, weight, bias, log_threshold, torch.zeros(D_IN), rule)
    packed = infer_packed(encoder)
    assert packed.shape == (*lead, packed_width(LATENTS))
    assert unpack(packed, LATENTS).shape == (*lead, LATENTS)
    codes, index = infer_indices(encoder)
    assert codes.shape == index.shape
    assert scatter_codes(codes, index, LATENTS).shape == (*lead, LATENTS)


@pytest.mark.parametrize("selection", ["topk", "threshold"])
def test_packing_makes_no_array_of_codes(selection: str):
    """The codes of these tokens would take 800 MB as floats, and take 25 MB packed."""
    tokens, latents = 12_500, 16_000
    x, weight = torch.randn(tokens, 4), torch.randn(4, latents)
    bias, log_threshold = torch.zeros(latents), torch.full((latents,), 1.0)
    encoder = Encoder(x, weight, bias, log_threshold, torch.zeros(4), CodeRule(selection))
    with little_memory():
        packed = infer_packed(encoder)
    assert packed.shape == (tokens, latents // 8)


@each_code_rule
def test_under_autocast_codes_are_those_of_the_encoder_under_autocast(rule: CodeRule):
    x, weight = torch.randn(40, D_IN), torch.randn(D_IN, LATENTS)
    bias, log_threshold = torch.randn(2, LATENTS)
    encoder = Encoder(x, weight, bias, log_threshold, torch.zeros(D_IN), rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = binarise(pre_activations(x, weight, bias), log_threshold, rule)
        codes, index = infer_indices(encoder)
        packed = infer_packed(encoder)
    assert torch.equal(scatter_codes(codes, index, LATENTS), expected)
    assert torch.equal(unpack(packed, LATENTS), expected)
