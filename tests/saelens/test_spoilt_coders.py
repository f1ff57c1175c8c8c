"""Training on degenerate batches gives finite weights, and a coder with NaN is never saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from tests.cases import SELECTIONS
from tests.saelens.helpers import fvu, trainer_for

D_IN, D_SAE, K = 16, 128, 8
FIELDS: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": K}
CONFIGS: dict[str, Any] = {
    **{name: BinaryTrainingSAEConfig(**FIELDS, selection=name) for name in SELECTIONS},
    "no b_dec": BinaryTrainingSAEConfig(**FIELDS, apply_b_dec_to_input=False),
    "layer_norm": BinaryTrainingSAEConfig(**FIELDS, normalize_activations="layer_norm"),
    "entropy": BinaryEntropyTrainingSAEConfig(**FIELDS, covariance_coefficient=1e-5),
}
each_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def usual_fvu(clustered_activations: Tensor) -> dict[str, float]:
    """The FVU of each config's coder that is trained on the unchanged rows."""
    found: dict[str, float] = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        trained = trainer_for(config, clustered_activations, steps=60).fit()
        found[name] = fvu(trained, clustered_activations[200:])
    return found


@pytest.mark.parametrize("first", [0.0, 0.1, 10.0])
@each_config
def test_a_first_batch_of_equal_tokens_is_not_started_from(
    name: str, first: float, clustered_activations: Tensor, usual_fvu: dict[str, float]
):
    """Later batches train as they do without this batch, apart from its one optimizer step."""
    rows = clustered_activations.clone()
    rows[:200] = first
    trainer = trainer_for(CONFIGS[name], rows, steps=60)
    trained = trainer.fit()
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    found = fvu(trained, clustered_activations[200:])
    assert found < 1.3 * usual_fvu[name] + 0.1


@pytest.mark.parametrize("first", [0.0, 10.0])
def test_a_first_batch_of_equal_targets_is_not_started_from(
    first: float, clustered_activations: Tensor
):
    inputs = clustered_activations[:, :10]
    pairs = torch.cat([inputs, 5 * clustered_activations[:, 10:].relu() + 3], dim=1)
    config = BinaryTranscoderTrainingSAEConfig(d_in=10, d_out=6, d_sae=64, k=8)
    late = pairs.clone()
    late[:200, 10:] = first

    def error(rows: Tensor) -> float:
        trained = trainer_for(config, rows, steps=60).fit()
        missed = (trained(inputs[200:]) - pairs[200:, 10:]).square().sum()
        return (missed / (pairs[200:, 10:] - pairs[200:, 10:].mean(0)).square().sum()).item()

    assert error(late) < 1.3 * error(pairs) + 0.1


@each_config
def test_batches_of_one_token_train(name: str, clustered_activations: Tensor):
    trainer = trainer_for(CONFIGS[name], clustered_activations)
    for token in clustered_activations[:150].split(1):
        trainer.step(token)
        trainer.n_training_steps += 1
    trained = trainer.sae
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    assert fvu(trained, clustered_activations) < 1


@pytest.mark.parametrize(
    "config",
    [
        BinaryTrainingSAEConfig,
        BinaryEntropyTrainingSAEConfig,
        BinaryTranscoderTrainingSAEConfig,
        TopKTranscoderTrainingSAEConfig,
    ],
)
def test_training_in_float16_is_refused(config: Any):
    with pytest.raises(ValueError, match=r"dtype='float16'.*bfloat16"):
        config(**FIELDS, dtype="float16")
    coder = TrainingSAE.from_dict(config(**FIELDS).to_dict()).to(torch.float16)
    rows = torch.randn(100, D_IN + getattr(coder.cfg, "d_out", 0)).half()
    step = TrainStepInput(rows, {}, None, 0, False)
    with pytest.raises(ValueError, match=r"float16.*bfloat16"):
        coder.training_forward_pass(step)


def test_a_token_without_norm_stops_the_step_that_divides_by_it(clustered_activations: Tensor):
    rows = clustered_activations.clone()
    rows[605] = 0.0
    fields: dict[str, Any] = {**FIELDS, "normalize_activations": "constant_norm_rescale"}
    with pytest.raises(ValueError, match=r"step 3 .*norm 0"):
        trainer_for(BinaryTrainingSAEConfig(**fields), rows).fit()
    config = BinaryTrainingSAEConfig(**fields, skip_non_finite=True)
    trained = trainer_for(config, rows).fit()
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


def test_a_loss_that_overflows_stops_the_step(clustered_activations: Tensor):
    rows = clustered_activations.clone()
    rows[605] = 1e25
    trainer = trainer_for(BinaryTrainingSAEConfig(**FIELDS), rows)
    with pytest.raises(ValueError, match=r"step 3 has a loss"):
        trainer.fit()
    assert all(parameter.isfinite().all() for parameter in trainer.sae.parameters())


@pytest.mark.parametrize("parameter", ["W_enc", "W_dec", "b_enc", "b_dec", "log_threshold"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_coder_that_is_not_finite_is_not_saved(
    parameter: str, bad: float, clustered_activations: Tensor, tmp_path: Path
):
    trainer = trainer_for(BinaryTrainingSAEConfig(**FIELDS), clustered_activations)
    trained = trainer.fit()
    inference = BinarySAE(BinarySAEConfig(**FIELDS))
    saves: dict[str, Any] = {
        "model": trained.save_model,
        "inference": trained.save_inference_model,
        "checkpoint": lambda path: trainer.save_checkpoint(path.name, base_path=path.parent),
        "of inference": inference.save_model,
    }
    for name, save in saves.items():
        save(tmp_path / name)
    before = {name: load_file(tmp_path / name / "sae_weights.safetensors") for name in saves}
    for coder in (trained, inference):
        getattr(coder, parameter).data.flatten()[3] = bad
    for name, save in saves.items():
        with pytest.raises(ValueError, match=rf"not saved: {parameter} holds"):
            save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"not saved: {parameter} holds"):
            save(tmp_path / f"new {name}")
        kept = load_file(tmp_path / name / "sae_weights.safetensors")
        torch.testing.assert_close(kept, before[name], rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(saves)


def test_a_threshold_of_zero_is_saved(tmp_path: Path):
    coder = BinarySAE(BinarySAEConfig(**FIELDS))
    coder.log_threshold.data.fill_(-float("inf"))
    coder.save_model(tmp_path)


def test_firing_rates_are_shares_of_the_tokens_trained_on(clustered_activations: Tensor):
    """Firing rates count finite tokens only, although 72 of each 200 tokens are bad."""
    rows = clustered_activations.clone()
    bad = torch.arange(len(rows)) % 25 < 9
    rows[bad] = float("nan")
    config = BinaryTrainingSAEConfig(**FIELDS, skip_non_finite=True)
    trainer = trainer_for(config, rows)
    fired, tokens = torch.zeros(D_SAE), 0
    for batch in [*rows[:1000].split(200), rows[1000:1100]]:
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        fired += output.feature_acts.to_dense().sum(0)
        tokens += int(batch.isfinite().all(1).sum())
        logged = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
        l0 = output.feature_acts.to_dense().sum(1).mean().item()
        assert logged["metrics/l0"] == pytest.approx(l0)
    assert tokens == 704
    torch.testing.assert_close(trainer.feature_sparsity, fired / tokens)
    trainer.set_final_sae_metadata()
    assert trainer.sae.cfg.metadata.l0 == pytest.approx(fired.sum().item() / tokens, rel=1e-5)
