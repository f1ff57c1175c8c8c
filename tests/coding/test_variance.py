import pytest
import torch

from sae_binary_ext.coding.variance import summed_variance, total_variance


def test_total_variance_is_the_denominator_of_fvu():
    x = torch.randn(50, 3, 7)
    torch.testing.assert_close(total_variance(x), x.flatten(0, 1).var(0, correction=0).sum())


def test_summed_variance_is_the_sum_over_tokens():
    x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    summed = summed_variance(x, None)
    assert summed.item() == pytest.approx(50 * x.var(0, correction=0).sum().item())
    assert not summed.requires_grad


def test_a_part_of_a_batch_takes_the_whole_batch_s_variance():
    whole = torch.tensor(12.5)
    assert summed_variance(torch.randn(5, 7), None, whole) is whole
