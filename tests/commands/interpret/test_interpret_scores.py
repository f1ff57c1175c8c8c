import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_binary_ext.commands.interpret.interpret_page import (
    by_coder_and_judge,
    write_interpretation,
)
from sae_binary_ext.commands.interpret.interpret_scores import (
    LatentScore,
    SavedScores,
    area_of,
    f1_of,
)

JUDGE = "rule"
# For each latent: its F1, and its firings on 1000 tokens.
LATENTS = [(0.5, 2), (1.0, 60), (0.0, 138), (0.4, 600)]
SCORES = [
    LatentScore("coder", number, firings, firings / 1000, JUDGE, f1=f1, accuracy=0.5, answered=80)
    for number, (f1, firings) in enumerate(LATENTS)
] + [
    LatentScore("coder", 4, 0, 0.0, JUDGE, reason="dead"),
    LatentScore("coder", 5, 9, 0.009, JUDGE, reason="answers failed", failed=70, answered=10),
]


def test_f1_and_area_by_hand():
    assert f1_of(3, 1, 2) == pytest.approx(6 / 9)
    assert f1_of(0, 0, 0) == 0.0
    positive, negative = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])
    assert area_of(positive, negative) == pytest.approx((1 + 0.5 + 0 + 3) / 6)


def test_means_by_hand():
    (found,) = by_coder_and_judge(SCORES)
    assert found.mean("f1").value == pytest.approx(1.9 / 4)
    by_firings = (0.5 * 2 + 1.0 * 60 + 0.4 * 600) / 800
    assert found.firing_weighted("f1").value == pytest.approx(by_firings)
    assert found.mean("f1").low < found.mean("f1").value < found.mean("f1").high
    assert found.mean("f1", "above 50%").value == pytest.approx(0.4)
    assert found.mean("f1", "1% to 10%").value == pytest.approx(1.0)
    assert found.drawn("0.1% to 1%") == 2
    assert found.scored("0.1% to 1%") == 1
    assert (found.scored(), found.drawn()) == (4, 6)
    assert found.reasons() == {"dead": 1, "answers failed": 1}
    assert found.failed() == 70
    area = found.mean("area")
    assert area.value != area.value


def test_scores_of_two_judges_stay_apart(tmp_path: Path):
    other = [replace(score, judge="other", f1=0.9) for score in SCORES[:4]]
    found = by_coder_and_judge([*SCORES, *other])
    assert [each.judge for each in found] == [JUDGE, "other"]
    assert found[1].mean("f1").value == pytest.approx(0.9)
    table = str(write_interpretation(found, {"tokens": "1000"}, tmp_path))
    assert "4/6" in table
    assert "0.47 [" in table
    document = json.loads((tmp_path / "interpretation.json").read_text())
    one, two = document["coders"]
    assert (one["judge"], two["judge"]) == (JUDGE, "other")
    assert one["not_scored"] == {"dead": 1, "answers failed": 1}
    assert one["mean"]["f1"]["value"] == pytest.approx(1.9 / 4)
    assert one["mean"]["area"]["value"] is None
    assert one["bands"]["above 50%"]["f1"]["value"] == pytest.approx(0.4)
    assert one["bands"]["10% to 50%"] | {"f1": 0} == {
        "drawn": 1, "scored": 1, "f1": 0,
        "area": {"value": None, "interval": [None, None]},
        "accuracy": {"value": 0.5, "interval": [None, None]},
    }  # fmt: skip


def test_saved_scores_are_gone_on_with(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    first = SavedScores(path, "this")
    first.add(SCORES[:2])
    path.write_text(path.read_text() + '{"coder": "coder", "lat')
    again = SavedScores(path, "this")
    assert again.records == SCORES[:2]
    assert again.has("coder", 1, JUDGE)
    assert not again.has("coder", 2, JUDGE)
    assert not again.has("coder", 1, "other")
    again.add(SCORES)
    assert SavedScores(path, "this").records == SCORES
    assert SavedScores(path, "another").records == []
