"""Worlds of known features, the latents of each feature, and the choice of settings."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.result_lines import ResultsFile
from benchmarks.synthetic import cases, results, running
from benchmarks.synthetic.cases import Case
from benchmarks.synthetic.recovery import explained, find_groups


@pytest.mark.parametrize("name", cases.WORLDS)
def test_a_world_has_about_twelve_active_features_and_always_the_same_directions(name: str):
    world, again = cases.new_world(name), cases.new_world(name)
    features = world.activation_generator.sample(500)
    assert (features > 0).sum(1).float().mean() == pytest.approx(cases.TRUE_L0, rel=0.35)
    assert torch.equal(world.feature_dict.feature_vectors, again.feature_dict.feature_vectors)


def test_features_have_their_number_of_levels():
    features = torch.ones(2000, cases.FEATURES)
    features[:, 5] = 0
    found = cases.with_levels(features)
    for feature, level in enumerate(cases.levels_of_features()[:8].tolist()):
        values = found[:, feature].unique()
        if feature == 5:
            assert values.tolist() == [0]
        else:
            assert len(values) == level
            assert values.min() >= cases.LEAST
            assert values.max() <= cases.MOST
    assert found[:, 1].unique().tolist() == [cases.LEAST, cases.MOST]
    assert found[:, 0].unique().tolist() == [(cases.LEAST + cases.MOST) / 2]


class OfLevels:
    """A coder of two features: two latents fire at two levels of the first, one at the second."""

    W_dec = torch.tensor([[1.0, 0, 0], [1, 0.2, 0], [0, 1, 0], [0, 0.1, 1], [1, 0, 0]])

    def encode(self, x: Tensor) -> Tensor:
        codes = torch.zeros(len(x), 5)
        codes[:, 0], codes[:, 1] = x[:, 0] > 0, x[:, 0] > 1
        codes[:, 2], codes[:, 3] = x[:, 1] > 0, x[:, 1] > 0.7
        return codes


def test_latents_belong_to_the_feature_they_point_at():
    torch.manual_seed(0)
    magnitudes = torch.rand(400, 3) * (torch.rand(400, 3) > 0.5) * 2
    magnitudes[:, 2] = 0
    world: Any = SimpleNamespace(
        feature_dict=SimpleNamespace(feature_vectors=torch.eye(3)),
        sample_with_features=lambda samples: (magnitudes[:samples], magnitudes[:samples]),
    )
    groups = find_groups(OfLevels(), world, 400)
    # Latent 4 points at the first feature too, and never fires.
    assert groups.latents.tolist() == [2, 1, 1]
    # Whether the magnitude is in the upper half tells three quarters of an even spread.
    assert groups.told[0] == pytest.approx(0.75, abs=0.03)
    assert groups.told[1] == pytest.approx(0, abs=1e-9)
    assert groups.told[2].isnan()
    summary = groups.summary(torch.tensor([True, True, False]))
    assert summary["latents"] == 1.5
    assert summary["several"] == 0.5
    assert summary["told"] == pytest.approx(0.375, abs=0.02)


def test_values_tell_a_magnitude_wholly_and_constants_have_none_to_tell():
    magnitudes = torch.linspace(1, 2, 50, dtype=torch.float64)
    assert explained(3 * magnitudes[:, None], magnitudes) == pytest.approx(1)
    assert explained(torch.ones(50, 1).double(), magnitudes) == pytest.approx(0, abs=1e-9)
    constant = explained(magnitudes[:, None], torch.ones(50).double())
    assert constant != constant


def line(case: Case, explained: float, l0: float, **changes: Any) -> dict[str, Any]:
    figures = {"explained_variance": explained, "sae_l0": l0, "true_l0": 12.0, "mcc": 0.5}
    return {"world": "varying", "case": asdict(case), "seed": 0, **figures, **changes}


def test_the_best_case_explains_most_among_those_of_the_right_sparsity():
    searched = results.searched("jumprelu")
    lines = [line(case, 0.5, 12.0) for case in searched]
    lines[1] |= {"explained_variance": 0.9, "sae_l0": 40.0}
    lines[2] |= {"explained_variance": 0.6, "sae_l0": 10.0}
    assert results.tuned("jumprelu", lines) == searched[2]
    assert results.tuned("jumprelu", lines[:-1]) is None
    too_many = [each | {"sae_l0": 40.0 + number} for number, each in enumerate(lines)]
    assert results.tuned("jumprelu", too_many) == searched[0]
    # Lines of other worlds and seeds are none of the search.
    assert results.tuned("jumprelu", [each | {"seed": 1} for each in lines]) is None


def test_no_family_of_binary_coders_has_more_searched_cases_than_a_stock_one():
    numbers = {family: len(set(results.searched(family))) for family in cases.FAMILIES}
    # A stock family may have more, where its first cases were too few to choose from.
    assert numbers.pop("jumprelu") == 9
    assert set(numbers.values()) == {8}
    configs = [results.searched(family)[0].config() for family in cases.FAMILIES]
    assert {config.d_sae for config in configs} == {cases.LATENTS}


def test_a_run_is_measured_and_known_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cases, "SAMPLES", 4 * cases.BATCH)
    monkeypatch.setattr(cases, "EVAL_SAMPLES", 300)
    monkeypatch.setattr(running, "GROUP_SAMPLES", 300)
    monkeypatch.setattr(results, "RESULTS", ResultsFile(tmp_path / "results.jsonl"))
    runs = [running.Run("levels", Case("binary", 1e-3, 12), seed) for seed in (0, 1)]
    found = running.make(runs[0])
    results.RESULTS.append(found)
    assert results.missing(runs) == runs[1:]
    assert 10 < found["sae_l0"] <= 12
    assert set(found["groups"]) == {"all", "1", "2", "4", "8"}
    assert json.loads(json.dumps(found)) == results.RESULTS.read()[0]
