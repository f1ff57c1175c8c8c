"""Settings that are left at None follow from the run's size; a setting that was given stays."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.training import derived
from sae_binary_ext.training.derived import RunSize, derived_settings
from tests.saelens.helpers import BATCH, trainer_for
from tests.sparsify.trainers import HOOKPOINT, coder_in, trainer_on

STEPS = 20
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 32}
OTHERS = {
    "initial_firing_rate": 0.25,
    "entropy_start_step": 3,
    "entropy_warm_up_steps": 5,
    "dead_window_tokens": 2 * BATCH,
    "lr_decay_share": 0.5,
    "refit_tokens": BATCH,
}


@pytest.fixture
def other_rules(monkeypatch: pytest.MonkeyPatch) -> list[RunSize]:
    """Rules with other values than today's, which note the runs that they are asked for."""
    asked: list[RunSize] = []

    def rules(run: RunSize, *coder: Any) -> dict[str, Any]:
        asked.append(run)
        return {**derived_settings(run, *coder), **OTHERS}

    monkeypatch.setattr(derived, "derived_settings", rules)
    return asked


@pytest.mark.parametrize(
    ("run", "window"),
    [
        (RunSize(), 0),
        (RunSize(300_000, 512), 0),  # the demo, in which SAELens' window of 1000 steps never ends
        (RunSize(510_000, 512), 32 * 4608 // 32),
        (RunSize(3_000_000, 4096), 32 * 4608 // 32),
    ],
)
def test_todays_rules(run: RunSize, window: int):
    rest = {
        "initial_firing_rate": 0.05,
        "entropy_start_step": 0,
        "entropy_warm_up_steps": 0,
        "lr_decay_share": 0.0,
        "refit_tokens": 0,
    }
    for raises_dead in (False, True):
        settings = derived_settings(run, CodeRule("topk", 32), 4608, raises_dead)
        assert settings == {**rest, "dead_window_tokens": window * raises_dead}
    for selection in ("threshold", "groupmax", "gumbel"):
        settings = derived_settings(run, CodeRule(selection, 32), 4608, True)
        assert settings["dead_window_tokens"] == 0


def test_a_long_run_of_binary_takes_the_derived_window(clustered_activations: Tensor):
    """The loss that raises biases then acts after as many tokens at each batch size."""
    fields: dict[str, Any] = {**SIZES, "k": 4}

    def window(config_class: type[Any], steps: int, **more: Any) -> int:
        config = config_class(**fields, **more)
        width = clustered_activations[:, : 16 * (1 + ("d_out" in vars(config)))]
        return trainer_for(config, width, steps).cfg.dead_feature_window

    expected = max(1, round(32 * 32 / 4 / BATCH))
    assert window(BinaryTrainingSAEConfig, 600) == expected
    assert window(BinaryTranscoderTrainingSAEConfig, 600) == expected
    assert window(BinaryTrainingSAEConfig, 599) == 1000
    assert window(BinaryTrainingSAEConfig, 600, pre_act_loss_coefficient=0.0) == 1000
    assert window(BinaryEntropyTrainingSAEConfig, 600) == 1000
    assert window(BinaryTranscoderTrainingSAEConfig, 600, aux_loss_coefficient=0.1) == 1000


def test_saelens_trains_with_what_is_derived(
    other_rules: list[RunSize], clustered_activations: Tensor, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    trainer = trainer_for(BinaryEntropyTrainingSAEConfig(**SIZES), clustered_activations, STEPS)
    assert other_rules[-1] == RunSize(STEPS * BATCH, BATCH)
    assert trainer.cfg.dead_feature_window == 2
    assert trainer.cfg.lr_decay_steps == STEPS // 2
    losses: list[dict[str, Tensor]] = []
    forward = trainer.sae.training_forward_pass

    def noted(step_input: TrainStepInput) -> TrainStepOutput:
        output = forward(step_input)
        losses.append(output.losses)
        return output

    trainer.sae.training_forward_pass = noted
    coder = trainer.fit()
    assert [("entropy_loss" in each) and bool(each["entropy_loss"]) for each in losses[:4]] == [
        False, False, False, True,
    ]  # fmt: skip
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-9
    assert f"refitted on {BATCH} tokens" in caplog.text
    said = f"derived for {STEPS * BATCH} training tokens in steps of {BATCH} tokens: "
    assert caplog.text.count(said) == 1
    assert all(f"{name}={value}" in caplog.text for name, value in OTHERS.items())
    # The config keeps what the user set: nothing.
    assert all(coder.cfg.to_dict()[name] is None for name in OTHERS)


def test_saelens_keeps_what_was_given(
    other_rules: list[RunSize], clustered_activations: Tensor, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    off: dict[str, Any] = dict.fromkeys(OTHERS, 0) | {"initial_firing_rate": 0.1}
    config = BinaryEntropyTrainingSAEConfig(**SIZES, **off)
    trainer = trainer_for(config, clustered_activations, 2)
    assert (trainer.cfg.dead_feature_window, trainer.cfg.lr_decay_steps) == (1000, 0)
    coder = trainer.fit()
    assert all(coder.setting(name) == value for name, value in off.items())
    assert "derived for 400 training tokens in steps of 200 tokens: nothing" in caplog.text
    assert "refitted" not in caplog.text

    hosts: dict[str, Any] = {"dead_feature_window": 7, "lr_decay_steps": 1}
    config = BinaryEntropyTrainingSAEConfig(**SIZES)
    trainer = trainer_for(config, clustered_activations, 2, **hosts)
    assert (trainer.cfg.dead_feature_window, trainer.cfg.lr_decay_steps) == (7, 1)
    # Our own window is explicit, so it replaces even a window of SAELens that was given.
    config = BinaryEntropyTrainingSAEConfig(**SIZES, dead_window_tokens=5 * BATCH)
    assert trainer_for(config, clustered_activations, 2, **hosts).cfg.dead_feature_window == 5


def test_sparsify_trains_with_what_is_derived(
    other_rules: list[RunSize], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    rows = torch.arange(240).view(24, 10)
    sae = BinarySparseCoderConfig(num_latents=64, activation="binary", entropy_alpha=1e-3)
    trainer = trainer_on(torch.randn(240, 8), rows, sae, tmp_path, batch_size=2, grad_acc_steps=2)
    trainer.fit()
    assert coder_in(trainer).run == RunSize(240, 40)
    assert trainer.cfg.dead_feature_threshold == OTHERS["dead_window_tokens"]
    assert f"{HOOKPOINT}: derived for 240 training tokens in steps of 40 tokens: " in caplog.text
    assert f"{HOOKPOINT}: decoder refitted on" in caplog.text
    assert coder_in(trainer).cfg.refit_tokens is None

    given = BinarySparseCoderConfig(num_latents=64, k=4, refit_tokens=0, dead_window_tokens=50)
    kept = trainer_on(torch.randn(240, 8), rows, given, tmp_path, dead_feature_threshold=9)
    kept.fit()
    assert kept.cfg.dead_feature_threshold == 50
    sae = BinarySparseCoderConfig(num_latents=64, k=4, refit_tokens=0)
    kept = trainer_on(torch.randn(240, 8), rows, sae, tmp_path, dead_feature_threshold=9)
    kept.fit()
    assert kept.cfg.dead_feature_threshold == 9
