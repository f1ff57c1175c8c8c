"""Training resumes from a saved run at the activation scale of that run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    RefinedTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saelens.resuming import FOLDED_SCALE_FILENAME
from tests.saelens.helpers import fvu, trainer_for
from tests.saelens.test_estimates import pair_trainer

FIELDS: dict[str, Any] = {"d_in": 16, "d_sae": 64, "k": 8}
TRAINED: list[Any] = [
    BinaryTrainingSAEConfig(**FIELDS, surrogate_latents="all", dense_coefficient=4e-3),
    BinaryTrainingSAEConfig(**FIELDS, pre_act_loss_coefficient=0.5, encoder_trains_b_dec=True),
    BinaryEntropyTrainingSAEConfig(
        **FIELDS, entropy_coefficient=3e-3, covariance_coefficient=1e-4, skip_non_finite=True
    ),
    BinaryEntropyTrainingSAEConfig(**FIELDS, selection="groupmax", entropy_warm_up_steps=7),
    RefinedTrainingSAEConfig(**FIELDS, dense_coefficient=4e-3),
    BinaryTranscoderTrainingSAEConfig(
        **FIELDS, d_out=12, aux_loss_coefficient=0.5, entropy_coefficient=1e-3
    ),
    TopKTranscoderTrainingSAEConfig(**FIELDS, d_out=12, aux_loss_coefficient=0.25),
]


@pytest.mark.parametrize("save", ["save_inference_model", "save_model"])
@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config.architecture())
def test_a_saved_coder_is_trained_on_as_what_it_was(config: Any, save: str, tmp_path: Path):
    coder = TrainingSAE.from_dict(config.to_dict())
    coder.cfg.metadata.remark = "kept"
    getattr(coder, save)(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    assert type(again) is type(coder)
    assert again.cfg.metadata.remark == "kept"
    ours, theirs = again.cfg.to_dict(), coder.cfg.to_dict()
    for fields in (ours, theirs):
        del fields["metadata"]
    assert ours == theirs
    saved = load_file(tmp_path / "sae_weights.safetensors").keys()
    # The next step of a refined coder tells its rates from its prices.
    assert coder.state_dict().keys() - saved <= {"firing_rate"}
    before, after = ({name: each.state_dict()[name] for name in saved} for each in (coder, again))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_coder_that_does_not_say_how_it_was_trained_is_trained_plainly(tmp_path: Path):
    coder = TrainingSAE.from_dict(BinaryEntropyTrainingSAEConfig(**FIELDS).to_dict())
    _, path = coder.save_inference_model(tmp_path)
    config = json.loads(path.read_text())
    for trained_as in (None, "jumprelu", "topk_transcoder"):
        config["metadata"] = {"training_architecture": trained_as} if trained_as else {}
        path.write_text(json.dumps(config))
        assert TrainingSAE.load_from_disk(tmp_path).cfg.architecture() == "binary"


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("mode", ["none", "expected_average_only_in", "covariance_whitening"])
def test_a_final_checkpoint_goes_on_as_an_unbroken_run(
    mode: Any, apply_b_dec_to_input: bool, clustered_activations: Tensor, tmp_path: Path
):
    rows = 20 * clustered_activations.double()
    config = BinaryTrainingSAEConfig(
        **FIELDS,
        normalize_activations=mode,
        apply_b_dec_to_input=apply_b_dec_to_input,
        dtype="float64",
    )

    def trainer(steps: int) -> Any:
        settings: dict[str, Any] = {"lr_end": 3e-3, "save_final_checkpoint": True}
        return trainer_for(config, rows, steps, checkpoint_path=str(tmp_path / "of"), **settings)

    first = trainer(20).fit()
    (final,) = (tmp_path / "of").iterdir()
    unbroken, resumed = trainer(30), trainer(30)
    expected = unbroken.fit()
    # Skip the batches that the first run has read.
    resumed.data_provider = trainer(30).data_provider
    for _ in range(20 + 5 * (mode != "none")):
        next(resumed.data_provider)
    resumed.load_trainer_state(final)
    resumed.sae.load_weights_from_checkpoint(final)
    found = resumed.fit()
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)
    assert fvu(found, rows) < fvu(first, rows) < 1


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_a_final_checkpoint_of_transcoders_goes_on_in_their_scale(
    mode: str, clustered_activations: Tensor, tmp_path: Path
):
    pairs = torch.cat([20 * clustered_activations, 3 * clustered_activations.flip(1) + 1], dim=1)
    trainer = pair_trainer(pairs, {"binary": False, "continuous": False}, mode)
    trainer._estimate_scaling_factors()
    before = {
        name: {key: value.clone() for key, value in sae.state_dict().items()}
        for name, sae in trainer.saes.items()
    }
    scaled = {n: single.activation_scaler.scale(pairs) for n, single in trainer.trainers.items()}
    trainer.cfg.total_training_samples = 0  # fit() then only folds the scale
    trainer.fit()
    trainer.cfg.checkpoint_path = str(tmp_path)
    trainer.save_checkpoint("final")

    resumed = pair_trainer(pairs, {"binary": False, "continuous": False}, mode)
    resumed.load_checkpoint(tmp_path / "final")
    for name, sae in resumed.saes.items():
        assert sae.cfg.normalize_activations == mode
        torch.testing.assert_close(sae.state_dict(), before[name], rtol=1e-3, atol=1e-4)
        again = resumed.trainers[name].activation_scaler.scale(pairs)
        torch.testing.assert_close(again, scaled[name], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_a_final_checkpoint_that_lost_its_scale_is_refused(
    mode: Any, clustered_activations: Tensor, tmp_path: Path
):
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=mode)
    trainer = trainer_for(config, clustered_activations, steps=2)
    trainer.fit()
    trainer.save_checkpoint("final", base_path=tmp_path)
    (tmp_path / "final" / FOLDED_SCALE_FILENAME).unlink()
    resumed = trainer_for(config, clustered_activations, steps=4)
    for load in (resumed.load_trainer_state, resumed.sae.load_weights_from_checkpoint):
        with pytest.raises(ValueError, match=rf"take raw activations.*{mode}"):
            load(tmp_path / "final")
    # Weights that take raw activations can train further without scaling.
    plain = trainer_for(BinaryTrainingSAEConfig(**FIELDS), clustered_activations, steps=4)
    plain.load_trainer_state(tmp_path / "final")
    plain.sae.load_weights_from_checkpoint(tmp_path / "final")
    assert fvu(plain.sae, clustered_activations) < 1


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_weights_of_a_run_under_way_go_on_in_their_scale(
    mode: Any, clustered_activations: Tensor, tmp_path: Path
):
    """Weights that load_from_disk reads from a checkpoint train on in the scale of their run."""
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations=mode)
    rows = 20 * clustered_activations
    settings: dict[str, Any] = {"n_checkpoints": 1, "checkpoint_path": str(tmp_path)}
    first = trainer_for(config, rows, 40, **settings).fit()
    (halfway,) = tmp_path.iterdir()
    scaler = ActivationScaler()
    scaler.load(halfway / "activation_scaler.json")

    going_on = trainer_for(config, rows.flip(1), 1, lr=1e-9, lr_end=1e-9)
    going_on = SAETrainer(going_on.cfg, TrainingSAE.load_from_disk(halfway), going_on.data_provider)
    assert going_on.activation_scaler.scaling_factor == scaler.scaling_factor
    if scaler.whitening is not None:
        torch.testing.assert_close(
            vars(going_on.activation_scaler.whitening), vars(scaler.whitening), rtol=0, atol=0
        )
    assert fvu(going_on.fit(), rows) < fvu(first, rows) + 0.1


def test_weights_without_the_scale_they_were_trained_in_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = BinaryTrainingSAEConfig(**FIELDS, normalize_activations="covariance_whitening")
    TrainingSAE.from_dict(config.to_dict()).save_model(tmp_path)
    assert TrainingSAE.load_from_disk(tmp_path).scale is None
    assert "does not hold the scale that its weights were trained in" in caplog.text
