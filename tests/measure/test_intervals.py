import math

import pytest
import torch

from sae_binary_ext.measure.documents import REPLICATES, WeightedSums, document_weights, estimate_of


def test_a_document_counts_once_and_its_own_number_of_times_in_each_replicate():
    weights = document_weights([7, 7, 3])
    assert weights.shape == (3, 1 + REPLICATES)
    assert (weights[:, 0] == 1).all()
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[2], document_weights([3])[0])


def test_weights_are_poisson_of_mean_and_variance_one():
    drawn = document_weights(list(range(500)))[:, 1:]
    assert drawn.mean().item() == pytest.approx(1, abs=0.02)
    assert drawn.var().item() == pytest.approx(1, abs=0.03)


def test_an_interval_is_as_wide_as_that_of_the_mean():
    values = torch.randn(400, 1, dtype=torch.float64)
    sums = WeightedSums(2)
    weights = document_weights(list(range(400)))
    for part in torch.arange(400).split(37):
        sums.add(torch.cat([torch.ones_like(values), values], dim=1)[part], weights[part])
    mean = estimate_of(sums.sums[:, 1] / sums.sums[:, 0])
    assert mean.value == pytest.approx(values.mean().item())
    half = 1.96 * values.std().item() / math.sqrt(400)
    assert mean.low == pytest.approx(mean.value - half, abs=0.3 * half)
    assert mean.high == pytest.approx(mean.value + half, abs=0.3 * half)


def test_one_document_has_no_interval():
    sums = WeightedSums(2)
    sums.add(torch.tensor([[2.0, 3.0]]), document_weights([0]))
    mean = estimate_of(sums.sums[:, 1] / sums.sums[:, 0])
    assert mean.value == pytest.approx(1.5)
    assert math.isnan(mean.low)
    assert math.isnan(mean.high)


def test_replicates_without_a_figure_are_left_out():
    found = estimate_of(torch.tensor([1.0, 2.0, float("nan"), 3.0, float("inf")]).double())
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (1.0, 2.025, 2.975)
