"""Means, the best strengths, and coders at equal KL."""

import math

import pytest

from sae_binary_ext.commands.steer import SteerConfig
from sae_binary_ext.commands.steer.measured_page import at_equal_kl, measured_page, sets_of
from sae_binary_ext.commands.steer.measuring import (
    CHOOSING,
    FACTORS,
    MEASURED,
    MeasuredCoder,
    SteeredLatent,
)

NUMBER = 20


def scored(latent: int, factor: float, prompts: str, kl: float, own: float) -> SteeredLatent:
    return SteeredLatent("it", latent, factor, prompts, kl, own, own / 2, own / 10, own / 20)


def binary(kl: float, own: float) -> MeasuredCoder:
    # The mean over latents is own.
    scores = [
        scored(latent, 1.0, MEASURED, kl, own + (latent - 9.5) / 10) for latent in range(NUMBER)
    ]
    return MeasuredCoder("binary", True, scores, {3: [" cat"]})


def stock(best_of_latent: float = 4.0) -> MeasuredCoder:
    """KL is factor / 10. `own` is log2(factor), except on prompts for choosing."""
    scores = [
        scored(latent, factor, MEASURED, factor / 10, math.log2(factor))
        for factor in FACTORS
        for latent in range(NUMBER)
    ]
    for factor in FACTORS:
        for latent in range(NUMBER):
            best = best_of_latent if latent < 5 else 2.0
            own = 3.0 if factor == best else 0.0
            scores.append(scored(latent, factor, CHOOSING, 0.1, own))
    return MeasuredCoder("topk", False, scores, {})


def test_a_binary_coder_has_one_row_of_means():
    (only,) = sets_of(binary(0.2, 1.5))
    assert only.how == "on"
    own = only.mean("own")
    assert own.value == pytest.approx(1.5)
    assert 0.1 < own.high - own.low < 0.8
    assert only.worth.value == pytest.approx(1.3)


def test_strengths_are_chosen_on_prompts_that_are_not_measured():
    *sweep, for_all, for_each = sets_of(stock())
    assert [each.how for each in sweep] == [f"x{factor:g}" for factor in FACTORS]
    assert all(each.swept for each in sweep)
    assert (for_all.how, for_all.swept) == ("best for all, x2", False)
    assert for_all.mean("own").value == pytest.approx(1.0)  # of the measured prompts
    assert for_each.how == "best for each latent"
    assert for_each.mean("own").value == pytest.approx((5 * 2 + 15 * 1) / NUMBER)
    assert {each.factor for each in for_each.scores} == {2.0, 4.0}


def test_coders_are_compared_at_equal_kl():
    sweep = [each for each in sets_of(stock()) if each.swept]
    # A KL of 0.2 * sqrt(2) is half-way from x2 to x4 in its logarithm.
    found = at_equal_kl(sets_of(binary(0.2 * math.sqrt(2), 2.0))[0], sweep)
    assert found.own.value == pytest.approx(2.0 - 1.5)
    assert found.following.value == pytest.approx(1.0 - 0.75)
    assert found.own.low < 0.5 < found.own.high
    outside = at_equal_kl(sets_of(binary(0.01, 2.0))[0], sweep)
    assert math.isnan(outside.own.value)


def test_a_figure_that_is_missing_for_a_latent_does_not_count():
    coder = binary(0.2, 1.5)
    broken = [*coder.scores, scored(99, 1.0, MEASURED, 0.2, math.nan)]
    (only,) = sets_of(MeasuredCoder("binary", True, broken, {}))
    assert only.mean("own").value == pytest.approx(1.5)


def test_the_page_has_all_rows_and_each_score():
    analysis = measured_page([binary(0.25, 2.0), stock()], SteerConfig(measure=NUMBER))
    means, equal = analysis.tables
    assert [row[:2] for row in means.rows][:2] == [["binary", "on"], ["topk", "x0.5"]]
    assert len(means.rows) == 1 + len(FACTORS) + 2
    assert [row[:2] for row in equal.rows] == [["binary", "topk"]]
    assert all(column.meaning for table in analysis.tables for column in table.columns[1:])
    assert len(analysis.results["latents"]) == NUMBER * (1 + 2 * len(FACTORS))
    assert analysis.results["latents"][3]["own_tokens"] == [" cat"]
    curves = next(iter(analysis.figures.values()))
    assert [len(trace.x) for trace in curves.data] == [1, len(FACTORS)]


def test_binary_coders_alone_have_no_table_at_equal_kl():
    assert len(measured_page([binary(0.25, 2.0)], SteerConfig(measure=NUMBER)).tables) == 1
