"""`sae-binary gradients` reads a model and a text and writes its files."""

import json
from pathlib import Path

import pytest

from sae_binary_ext.cli import main
from sae_binary_ext.coding import SURROGATES
from sae_binary_ext.commands.gradients.config import GradientsConfig

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("selection", ["topk", "threshold"])
def test_every_surrogate_is_measured_over_training(
    selection: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
    arguments += ["--hook", "blocks.1.hook_resid_pre", "--context_size", "16", "--tokens", "1500"]
    arguments += ["--latents", "48", "--k", "6", "--training_states", "25600", "--probes", "3"]
    arguments += ["--probe_tokens", "200", "--probed_latents", "16", "--selection", selection]
    assert main(["gradients", *arguments, "--output", str(tmp_path)]) == 0
    probes = json.loads((tmp_path / "gradients.json").read_text())["results"]["probes"]
    assert [(probe["surrogate"], probe["step"]) for probe in probes] == [
        (surrogate, step) for surrogate in SURROGATES for step in (1, 10, 100)
    ]
    fvu = {(probe["surrogate"], probe["step"]): probe["fvu"] for probe in probes}
    # All surrogates start from the same weights, and the first measurement follows one step.
    starts = [fvu[surrogate, 1] for surrogate in SURROGATES]
    assert max(starts) - min(starts) < 0.01
    assert fvu["sigmoid", 100] < fvu["sigmoid", 1]
    assert all(0 < probe["latents"] <= 1 for probe in probes)
    assert (tmp_path / "gradients.html").is_file()
    assert "sigmoid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surrogates": ["sigmoid", "tanh"]}, "surrogates='tanh': choose one of"),
        ({"selection": "gumbel"}, "selection='gumbel'.*samples its codes"),
        ({"selection": "all"}, "selection='all'"),
        ({"probes": 0}, "probes=0"),
        ({"training_states": 10}, "training_states=10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        GradientsConfig(**fields)  # pyright: ignore[reportArgumentType]


def test_probes_are_evenly_spread_over_the_logarithm_of_the_steps():
    assert GradientsConfig(training_states=256 * 1000, probes=4).probe_steps() == [1, 10, 100, 1000]
    assert GradientsConfig(training_states=256 * 3, probes=9).probe_steps() == [1, 2, 3]


def test_a_hook_that_the_model_lacks_is_named(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--model", str(tiny_model_folder), "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["gradients", *arguments])
    assert "hook='blocks.9.hook_resid_pre'" in capsys.readouterr().err
