"""Tokens whose norm is too large are left out."""

import pytest
import torch

from sae_binary_ext.measure.documents import OutlyingTokens
from sae_binary_ext.settings import ReadingConfig

ROWS, CONTEXT, WIDTH = 3, 8, 16


def states(seed: int) -> torch.Tensor:
    """Random activations whose norms are near 4."""
    return torch.randn(ROWS, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def where() -> torch.Tensor:
    where = torch.ones(ROWS, CONTEXT, dtype=torch.bool)
    where[:, 0] = False
    return where


def test_tokens_far_off_at_any_hook_go_and_are_counted(where: torch.Tensor):
    found = {"one": states(0), "other": 1000 * states(1)}
    found["one"][1, 3] *= 100
    found["other"][2, 5] *= 100
    # A token that does not count is not found, even if its norm is large.
    found["one"][0, 0] *= 100
    outliers = OutlyingTokens(10)
    expected = where.clone()
    expected[1, 3] = expected[2, 5] = False
    assert torch.equal(outliers.within(found, where), expected)
    assert outliers.left_out == 2


def test_the_limit_is_in_medians_of_those_that_count(where: torch.Tensor):
    activations = torch.ones(ROWS, CONTEXT, WIDTH)
    activations[:, 0] = 1000
    activations[0, 1] = 9.9
    activations[0, 2] = 10.1
    left = OutlyingTokens(10).within({"hook": activations}, where)
    assert (where & ~left).nonzero().tolist() == [[0, 2]]


def test_medians_are_those_of_the_first_batch_that_has_any(where: torch.Tensor):
    outliers = OutlyingTokens(10)
    nothing = torch.zeros_like(where)
    assert not outliers.within({"hook": 100 * states(2)}, nothing).any()
    assert outliers.within({"hook": states(0)}, where).sum() == where.sum()
    assert not outliers.within({"hook": 100 * states(1)}, where).any()
    assert outliers.left_out == where.sum()
    outliers.start()
    assert outliers.within({"hook": 100 * states(1)}, where).sum() == where.sum()
    assert outliers.left_out == 0


def test_an_infinite_limit_leaves_none_out(where: torch.Tensor):
    found = {"hook": states(0)}
    found["hook"][1, 3] *= 1e6
    outliers = OutlyingTokens(float("inf"))
    assert torch.equal(outliers.within(found, where), where)
    assert outliers.left_out == 0


@pytest.mark.parametrize("limit", [0.5, -1.0, float("nan")])
def test_a_limit_below_the_median_is_refused(limit: float):
    with pytest.raises(ValueError, match=r"norm_limit=.*at least 1"):
        ReadingConfig(norm_limit=limit)
