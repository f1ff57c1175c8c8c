"""Latents are ranked, grouped and changed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands.ablate.ablate_run import flip, judged, zero
from sae_binary_ext.commands.ablate.config import AblateConfig
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore
from sae_binary_ext.measure.latent_groups import (
    RANKINGS,
    RunningLatents,
    alike_in_rate,
    ranked_groups,
)

RATES = [0.5, 0.25, 0.125, 0.0625, 0.875, 0.0, 0.25, 0.125]
TOKENS = 160


@pytest.fixture
def running() -> RunningLatents:
    """Statistics of latents with exactly the firing rates RATES, counted in two batches."""
    codes = torch.arange(TOKENS)[:, None] < torch.tensor(RATES) * TOKENS
    found = RunningLatents(len(RATES))
    for part in codes.float().split(100):
        found.add(part)
    return found


def test_rates_and_deviations_are_those_of_all_batches(running: RunningLatents):
    assert running.tokens == TOKENS
    assert running.rates.tolist() == RATES
    assert running.deviations.tolist() == pytest.approx([math.sqrt(p * (1 - p)) for p in RATES])


def test_values_have_the_deviation_of_values():
    found = RunningLatents(1)
    found.add(torch.tensor([[0.0], [2.0], [4.0], [0.0]]))
    assert found.rates.item() == 0.5
    assert found.deviations.item() == pytest.approx(torch.tensor([0.0, 2, 4, 0]).std(correction=0))


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("rate", RATES),
        # At a rate of 0.875, the rarer state is 0, and burstiness is log2 0.875, as at a rate of
        # 0.125.
        ("burstiness", [math.log2(max(p, 1 - p)) for p in RATES]),
        ("effect", [(j + 1) * math.sqrt(p * (1 - p)) for j, p in enumerate(RATES)]),
    ],
)
def test_rankings_are_what_their_formulas_say(
    ranking: str, expected: list[float], running: RunningLatents
):
    rows = torch.arange(1.0, 9)[:, None] * torch.tensor([0.6, 0.8])
    assert RANKINGS[ranking](running, rows).tolist() == pytest.approx(expected)


def test_groups_have_an_equal_share_of_the_firings_in_order_of_the_ranking():
    fired = torch.randint(1, 40, (400,)).double()
    running = RunningLatents(400)
    running.fired, running.tokens = fired, 1000
    scores = torch.rand(400, dtype=torch.float64)
    groups = list(ranked_groups(running, scores, 5, 0, 0))
    assert (
        torch.cat([group.latents for group in groups]).tolist()
        == scores.argsort(descending=True).tolist()
    )
    shares = [(fired[group.latents].sum() / fired.sum()).item() for group in groups]
    assert shares == pytest.approx([0.2] * 5, abs=0.01)


def test_singles_come_first_and_dead_latents_never(running: RunningLatents):
    groups = list(ranked_groups(running, -running.rates, 2, 3, 0))
    # The dead latent has the lowest rate, but it is in no group.
    assert [group.latents.tolist() for group in groups[:3]] == [[3], [2], [7]]
    assert groups[0].name == "latent 3 (number 1)"
    assert 5 not in torch.cat([group.latents for group in groups]).tolist()
    assert 5 not in torch.cat([group.others for group in groups]).tolist()


def test_latents_without_a_score_are_in_no_group(running: RunningLatents):
    scores = torch.tensor([math.nan, 0.2, 0.9, math.nan, 0.5, 0.8, math.nan, math.nan]).double()
    groups = list(ranked_groups(running, scores, 1, 1, 0))
    assert [group.latents.tolist() for group in groups] == [[2], [2, 4, 1]]


SCORES = [
    LatentScore("a", 1, 10, 0.1, "tokens", area=0.9),
    LatentScore("a", 3, 10, 0.1, "tokens", area=0.6),
    LatentScore("a", 2, 10, 0.1, "tokens", reason="active at too few places"),
    LatentScore("a", 3, 10, 0.1, "embedding", area=0.5),
    LatentScore("b", 0, 10, 0.1, "tokens", area=0.7),
]


def test_scores_are_those_of_the_coder_and_the_judge():
    found = judged(SCORES, "a", "tokens", 5)
    assert found.nan_to_num(-1).tolist() == [-1, 0.9, -1, 0.6, -1]
    assert judged(SCORES, "b", None, 2).nan_to_num(-1).tolist() == [0.7, -1]


@pytest.mark.parametrize(
    ("coder", "judge", "message"),
    [
        ("c", None, "coder='c', and the file has scores of a, b"),
        ("a", None, "judge=None, and the file has scores of embedding, tokens"),
        ("b", "embedding", "judge='embedding', and the file has scores of tokens"),
    ],
)
def test_scores_of_another_coder_or_judge_are_refused(coder: str, judge: str | None, message: str):
    with pytest.raises(ValueError, match=message):
        judged(SCORES, coder, judge, 5)


def test_random_latents_fire_as_often_and_are_others():
    fired = torch.cat([torch.full((50,), 10.0), torch.full((50,), 1000.0)]).double()
    latents = torch.tensor([3, 60, 4])
    drawn = [
        alike_in_rate(fired, latents, torch.Generator().manual_seed(seed)) for seed in range(20)
    ]
    for others in drawn:
        assert fired[others].tolist() == [10.0, 1000.0, 10.0]
        assert len(set(others.tolist()) | {3, 60, 4}) == 6
    assert len({tuple(others.tolist()) for others in drawn}) > 10


def test_where_all_latents_are_in_the_group_none_are_left():
    fired = torch.tensor([5.0, 6, 7, 0]).double()
    assert len(alike_in_rate(fired, torch.tensor([0, 1, 2]), torch.Generator())) == 0


def test_zero_silences_and_flip_turns_round():
    codes: Tensor = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    some = torch.tensor([0, 3])
    assert zero(codes, some).tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]
    assert flip(codes, some).tolist() == [[0, 0, 1, 1], [1, 0, 1, 0]]
    assert codes.sum() == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranking": "size"}, "ranking='size': choose one of burstiness, rate, effect, score"),
        ({"change": "double"}, "change='double': choose one of zero, flip"),
        ({"groups": 0}, "groups=0"),
        ({"latents": -1}, "latents=-1"),
        ({"spliced_tokens": 0}, "spliced_tokens=0"),
        ({"ranking": "score"}, "scores=None: ranking='score' ranks by .* Set scores to"),
        ({"scores": Path("scores.jsonl")}, "ranking='effect': takes no scores .*scores.jsonl"),
        ({"judge": "tokens"}, "ranking='effect': takes no .* judge \\(None, tokens\\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AblateConfig(**fields)
