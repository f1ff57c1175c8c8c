"""Means and intervals of scores over tasks, and tables of what was probed."""

import pytest

from sae_binary_ext.commands.probe import ProbeConfig
from sae_binary_ext.commands.probe.config import LATENTS
from sae_binary_ext.commands.probe.probe_fits import ONES, STATES, VALUES, ProbeScore
from sae_binary_ext.commands.probe.probe_page import HEADS, Probed, probe_page

TASKS = [f"task {number}" for number in range(12)]


def probed(coder: str, form: str, bits: float | None, shift: float) -> Probed:
    numbers = (0,) if form == STATES else (*LATENTS, 0)
    scores = [
        ProbeScore(coder, task, form, latents, 0.5 + 0.01 * place + shift, 0.9 - 0.02 * place)
        for place, task in enumerate(TASKS)
        for latents in numbers
    ]
    return Probed(coder, form, bits, scores)


STOCK, BINARY = probed("topk", VALUES, 400.0, 0.1), probed("binary", ONES, 300.0, 0.12)


def test_the_mean_is_over_tasks_and_so_is_its_interval():
    mean = BINARY.mean("auc", 5)
    assert mean
    assert mean.value == pytest.approx(0.5 + 0.055 + 0.12)
    assert mean.value - mean.low == pytest.approx(0.02, abs=0.01)
    assert mean.high - mean.value == pytest.approx(0.02, abs=0.01)


def test_a_difference_is_taken_task_by_task():
    # Tasks differ by far more than the two coders, and the difference is the same on each task.
    less = BINARY.mean("auc", 16, STOCK)
    assert less
    assert less.value == pytest.approx(0.02)
    assert not less.high - less.low > 1e-9


def test_hidden_states_have_a_probe_of_all_dimensions_alone():
    states = probed("hook", STATES, None, 0.2)
    assert states.mean("auc", 1) is None
    assert BINARY.mean("auc", 1, states) is None
    assert states.mean("auc", 0) is not None
    assert states.name == "hook"


def test_the_page_has_means_and_each_score():
    found = [probed("hidden states", STATES, None, 0.2), STOCK, BINARY]
    analysis = probe_page(found, ProbeConfig())
    auc, accuracy, less = analysis.tables
    assert "12 tasks" in analysis.title
    assert [row[0] for row in auc.rows] == [each.name for each in found]
    assert [column.label for column in auc.columns[2:]] == list(HEADS.values())
    assert all(column.meaning for table in analysis.tables for column in table.columns)
    assert accuracy.rows[1][2] == STOCK.mean("accuracy", 1)
    assert less.caption.startswith("AUC less that of topk, values")
    assert [row[0] for row in less.rows] == ["binary, active latents"]
    (*_, last) = analysis.results["probed"]
    assert last["auc"]["16 latents"] == BINARY.mean("auc", 16)
    assert len(last["tasks"]) == len(TASKS) * 5


def test_one_coder_alone_has_no_table_of_differences():
    analysis = probe_page([probed("hidden states", STATES, None, 0.2), BINARY], ProbeConfig())
    assert len(analysis.tables) == 2
