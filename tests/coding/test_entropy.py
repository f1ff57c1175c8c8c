import math

import pytest
import torch

from sae_binary_ext.coding import reference
from sae_binary_ext.coding.entropy import (
    FiringRates,
    bernoulli_entropy,
    burstiness,
    excess_rate,
    follow_prices,
    minibatch_entropy,
    ramp,
)


def some_codes(tokens: int = 50, latents: int = 12) -> torch.Tensor:
    rates = torch.linspace(0, 1, latents)  # the first latent never fires, the last always
    return (torch.rand(tokens, latents) < rates).double()


def test_bernoulli_entropy_at_known_rates():
    rates = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    quarter = 2 - 0.75 * math.log2(3)
    expected = torch.tensor([0.0, quarter, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(bernoulli_entropy(rates), expected)


def test_bernoulli_entropy_gradient_is_the_logit_and_zero_at_the_ends():
    rates = torch.tensor([0.0, 0.01, 0.5, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    bernoulli_entropy(rates).sum().backward()
    inner = rates.detach()[1:-1]
    expected = torch.cat([torch.zeros(1), ((1 - inner) / inner).log2(), torch.zeros(1)])
    torch.testing.assert_close(rates.grad, expected.double())


def test_minibatch_entropy_equals_a_direct_computation():
    codes = some_codes()
    assert minibatch_entropy(codes).item() == pytest.approx(reference.entropy_bits(codes))
    three_dimensional = codes.view(5, 10, -1)
    torch.testing.assert_close(minibatch_entropy(three_dimensional), minibatch_entropy(codes))


def test_minibatch_entropy_gradient_reaches_every_code():
    codes = some_codes().requires_grad_()
    minibatch_entropy(codes).backward()
    rates = codes.detach().mean(0)
    slope = torch.where((rates > 0) & (rates < 1), ((1 - rates) / rates).log2(), 0.0)
    torch.testing.assert_close(codes.grad, (slope / len(codes)).expand_as(codes))


def test_minibatch_entropy_counts_exactly_in_bfloat16():
    # A bfloat16 sum of 1000 ones is 256.
    codes = (torch.arange(2000) < 1000).bfloat16()[:, None]
    assert minibatch_entropy(codes).item() == 1.0


def test_burstiness_is_symmetric_in_ones_and_zeros():
    rates = torch.tensor([0.125, 0.875])
    bursts = burstiness(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), rates)
    expected = [math.log2(0.875), -3.0]
    torch.testing.assert_close(bursts, torch.tensor([[expected[0]] * 2, [expected[1]] * 2]))


def test_firing_rates_do_not_depend_on_the_batches():
    codes = some_codes(50)
    whole, parts = FiringRates(12), FiringRates(12)
    whole.update(codes)
    for part in codes.split(7):
        parts.update(part.view(1, *part.shape))
    assert torch.equal(whole.rates, parts.rates)
    torch.testing.assert_close(whole.rates, codes.mean(0))
    assert whole.entropy_bits == pytest.approx(reference.entropy_bits(codes))


def test_firing_rates_count_values_as_active():
    rates = FiringRates(3)
    rates.update(torch.tensor([[0.0, 0.3, 7.0], [0.0, 0.0, 1.0]]))
    assert rates.rates.tolist() == [0, 0.5, 1]


def test_firing_rates_of_nothing_are_refused():
    with pytest.raises(ValueError, match="update"):
        _ = FiringRates(3).rates


def test_ramp_starts_late_and_rises_to_one():
    assert [ramp(step, 2, 4) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, 1, 0) for step in range(3)] == [0, 1, 1]


def test_excess_rate_adds_what_is_above_the_limit():
    rates = torch.tensor([0.0, 0.1, 0.25, 0.5], dtype=torch.float64, requires_grad=True)
    total = excess_rate(rates, 0.1)
    total.backward()
    assert total.item() == pytest.approx(0.15 + 0.4)
    assert rates.grad is not None
    assert rates.grad[[0, 2, 3]].tolist() == [0.0, 1.0, 1.0]


def test_the_first_prices_are_those_of_the_first_batch():
    prices = torch.tensor([3.0, -1.0, 0.5])
    assert torch.equal(follow_prices(torch.zeros(3), prices, 256), prices)


def test_a_batch_of_a_hundredfold_variance_hardly_moves_prices():
    before, now = torch.tensor([3.0, 4.0]), 100 * torch.tensor([4.0, 3.0])
    # A batch of 200 tokens is a hundredth of the mean.
    after = follow_prices(before, now, 200)
    torch.testing.assert_close(after, torch.tensor([4.0, 3.0]) * 100**0.01)
    # A large batch is a tenth of it.
    torch.testing.assert_close(
        follow_prices(before, now, 100_000), torch.tensor([4.0, 3.0]) * 100**0.1
    )


def test_prices_reach_a_variance_that_stays():
    prices, now = torch.tensor([3.0, 4.0]), 5 * torch.tensor([3.0, 4.0])
    for _ in range(400):
        prices = follow_prices(prices, now, 256)
    torch.testing.assert_close(prices, now, rtol=0.01, atol=0)


def test_prices_of_0_stay_0():
    assert torch.equal(follow_prices(torch.ones(2), torch.zeros(2), 256), torch.zeros(2))
