"""Refined codes cost no more, and no single flip lowers their cost further."""

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import price_of_bits, reference
from sae_binary_ext.coding.forms import refine, refining
from sae_binary_ext.coding.forms.refining import FLIPS_PER_PASS, TOKENS_PER_BLOCK

TOKENS, LATENTS, D_OUT = 40, 48, 6
ENOUGH = 60


def inputs(tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns codes, target, decoder weight and price, in float64."""
    codes = (torch.rand(tokens, LATENTS, dtype=torch.float64) < 0.2).double()
    target, weight = (torch.randn(rows, D_OUT, dtype=torch.float64) for rows in (tokens, LATENTS))
    return codes, target, weight, torch.rand(LATENTS, dtype=torch.float64)


def cost(codes: Tensor, target: Tensor, weight: Tensor, price: Tensor) -> Tensor:
    return (target - codes @ weight).square().sum(1) + codes @ price


@pytest.mark.parametrize("passes", [1, 3])
def test_the_cost_of_no_token_rises(passes: int):
    codes, *others = inputs()
    refined = refine(codes, *others, passes)
    before, after = cost(codes, *others), cost(refined, *others)
    assert (after <= before + 1e-12).all()
    assert after.sum() < 0.5 * before.sum()
    assert ((refined == 0) | (refined == 1)).all()


def test_no_single_flip_lowers_the_cost_at_the_end():
    codes, *others = inputs()
    refined = refine(codes, *others, ENOUGH)
    reached = cost(refined, *others)
    for latent in range(LATENTS):
        flipped = refined.clone()
        flipped[:, latent] = 1 - flipped[:, latent]
        assert (cost(flipped, *others) >= reached - 1e-12).all()


def test_one_flip_a_pass_is_the_greedy_search(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_binary_ext.coding.forms.refining.FLIPS_PER_PASS", 1)
    given = inputs()
    assert torch.equal(refine(*given, ENOUGH), reference.refined(*given))


def test_a_bfloat16_coder_counts_costs_in_float32():
    codes, *others = inputs()
    rounded = [each.bfloat16() for each in others]
    refined = refine(codes.bfloat16(), *rounded, ENOUGH)
    assert refined.dtype == torch.bfloat16
    wide = [each.float() for each in rounded]
    assert torch.equal(refined.float(), refine(codes.float(), *wide, ENOUGH))


def test_orthogonal_rows_are_decided_one_by_one():
    codes = torch.zeros(TOKENS, D_OUT)
    target, price = torch.randn(TOKENS, D_OUT), torch.rand(D_OUT)
    weight = torch.diag(torch.rand(D_OUT) + 0.5)
    expected = 2 * target @ weight.T - weight.square().sum(1) > price
    assert torch.equal(refine(codes, target, weight, price, 1), expected.float())


def test_a_pass_flips_a_limited_number_of_latents():
    weight = torch.eye(LATENTS)
    refined = refine(
        torch.zeros(1, LATENTS), torch.ones(1, LATENTS), weight, torch.zeros(LATENTS), 2
    )
    assert refined.sum() == 2 * FLIPS_PER_PASS


def test_tokens_do_not_affect_each_other():
    codes, target, weight, price = inputs(TOKENS_PER_BLOCK + 3)
    together = refine(codes, target, weight, price, 3)
    last = slice(TOKENS_PER_BLOCK - 2, None)
    assert torch.equal(refine(codes[last], target[last], weight, price, 3), together[last])


def test_no_tokens_stay_no_tokens():
    codes, target, weight, price = inputs(0)
    assert refine(codes, target, weight, price, 3).shape == (0, LATENTS)


def test_price_is_the_difference_in_bits_between_one_and_zero():
    rates = torch.tensor([0.5, 0.25, 0.0])
    price = price_of_bits(rates, cost_of_bit=2.0, tokens=100)
    # A latent that never fired has the price of one that fired on half a token of a hundred.
    odds = torch.tensor([1.0, 3.0, 199.0])
    torch.testing.assert_close(price, 2 * odds.log2())


def test_codes_are_the_same_if_no_token_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """On a GPU each pass takes all tokens, so that nothing waits for their number."""
    codes, *others = inputs()
    expected = refine(codes, *others, ENOUGH)
    monkeypatch.setattr(refining, "knows_values", lambda _: False)
    monkeypatch.setattr(refining, "certainly_none", lambda _: False)
    assert torch.equal(refine(codes, *others, ENOUGH), expected)
