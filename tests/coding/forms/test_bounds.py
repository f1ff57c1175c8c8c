"""The candidates that each finder returns, compared with the bounds."""

import itertools

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding.forms.bounds import BoundsAbove, Candidates, LargestBounds
from sae_binary_ext.coding.kernels import processor

TOKENS, LATENTS = 40, 600


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processor, "FEWEST_ROWS", 7)
    monkeypatch.setattr(processor, "PART", 1)


@pytest.fixture
def bounds() -> Tensor:
    """Random bounds, bfloat16 [TOKENS, LATENTS]; each token has its own mean."""
    return (torch.randn(TOKENS, LATENTS) + 3 * torch.randn(TOKENS, 1)).bfloat16()


def latents_of(found: Candidates) -> list[list[int]]:
    starts = found.starts.tolist()
    return [sorted(found.column[start:end].tolist()) for start, end in itertools.pairwise(starts)]


def test_the_largest_bounds_are_above_all_others(bounds: Tensor):
    found = LargestBounds(20)(bounds)
    for token, latents in enumerate(latents_of(found)):
        assert len(set(latents)) == 20
        rest = bounds[token].clone()
        rest[latents] = -torch.inf
        assert bounds[token, latents].min() == found.others[token] >= rest.max()


@pytest.mark.parametrize("deviations", [-1.0, 0.5, 2.0, 100.0])
def test_bounds_above_a_value_are_all_that_are(bounds: Tensor, deviations: float):
    found = BoundsAbove(torch.tensor(deviations), LATENTS)(bounds)
    wanted = bounds.float() >= found.others.unsqueeze(-1)
    assert latents_of(found) == [row.nonzero().flatten().tolist() for row in wanted]
    bounds = bounds.float()
    expected = bounds.mean(-1) + deviations * bounds.std(-1, False)
    torch.testing.assert_close(found.others, expected, rtol=1e-5, atol=1e-5)


def test_tokens_with_too_many_bounds_above_have_no_candidates(bounds: Tensor):
    bounds[3, :300] = bounds[3].max() + 1
    few = BoundsAbove(torch.tensor(0.9), 250)(bounds)
    every = latents_of(BoundsAbove(torch.tensor(0.9), LATENTS)(bounds))
    assert len(every[3]) == 300
    assert latents_of(few) == [[] if token == 3 else row for token, row in enumerate(every)]


def test_what_is_not_a_number_is_no_candidate(bounds: Tensor):
    bounds[3, 5] = torch.nan
    found = BoundsAbove(torch.tensor(1.0), LATENTS)(bounds)
    assert latents_of(found)[3] == []
    assert all(row for token, row in enumerate(latents_of(found)) if token != 3)


def test_rows_hold_each_token_s_entries_and_then_none():
    found = Candidates(torch.tensor([0, 2, 2, 5]), torch.arange(5) * 10, torch.zeros(3))
    expected = [[0, 1, 5, 5], [5, 5, 5, 5], [2, 3, 4, 5]]
    assert found.rows(fewest=4).tolist() == expected
    assert found.rows(fewest=1).tolist() == [row[:3] for row in expected]


@pytest.mark.parametrize("hopeless", [0, 1, 3, 15])
@pytest.mark.parametrize("most", [40, LATENTS])
def test_tokens_that_need_nearly_all_latents_have_no_say(hopeless: int, most: int):
    bounds = torch.randn(TOKENS, LATENTS)
    least = bounds.topk(20).values[:, -1]
    least[:hopeless] = bounds[:hopeless].amin(-1)
    found = BoundsAbove.of_least_work(bounds, least, most)(bounds.bfloat16())
    counts = found.starts.diff()[hopeless:].float()
    assert (counts > 15).float().mean() > 0.8
    assert counts.mean() < 40
