from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from tests.saelens.helpers import fvu, trainer_for

D_IN, D_SAE = 16, 64


def losses_at(step: int, x: Tensor, **fields: Any) -> dict[str, float]:
    config = BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64", **fields)
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(config.to_dict())
    output = sae.training_forward_pass(TrainStepInput(x.double(), {}, None, step, False))
    losses = {name: value.item() for name, value in output.losses.items()}
    variance = (x - x.mean(0)).double().square().sum(-1).mean().item()
    losses["expected_entropy"] = variance * reference.entropy_bits(output.feature_acts.to_dense())
    losses["expected_covariance"] = variance * reference.covariance_l1(
        output.feature_acts.to_dense()
    )
    losses["sum"] = output.loss.item()
    return losses


def test_losses_are_the_coefficients_share_of_the_variance(clustered_activations: Tensor):
    losses = losses_at(
        0, clustered_activations[:300], entropy_coefficient=3e-3, covariance_coefficient=2e-4
    )
    assert losses["entropy_loss"] == pytest.approx(3e-3 * losses["expected_entropy"], rel=1e-6)
    assert losses["covariance_loss"] == pytest.approx(
        2e-4 * losses["expected_covariance"], rel=1e-6
    )
    parts = losses["mse_loss"] + losses["entropy_loss"] + losses["covariance_loss"]
    assert losses["sum"] == pytest.approx(parts)


def test_a_sample_of_latents_estimates_the_covariance_loss(clustered_activations: Tensor):
    x, on = clustered_activations[:300], {"covariance_coefficient": 2e-4}
    exact = losses_at(3, x, **on)["covariance_loss"]
    estimates = [
        losses_at(step, x, covariance_sample=16, **on)["covariance_loss"] for step in range(30)
    ]
    assert len(set(estimates)) == 30
    assert sum(estimates) / 30 == pytest.approx(exact, rel=0.15)
    assert losses_at(3, x, covariance_sample=D_SAE, **on)["covariance_loss"] == exact


def test_losses_do_not_depend_on_the_scale_of_the_input(clustered_activations: Tensor):
    x = clustered_activations[:300]
    small, large = losses_at(0, x), losses_at(0, 1000 * x)
    ratio = {
        name: losses["entropy_loss"] / losses["mse_loss"]
        for name, losses in (("small", small), ("large", large))
    }
    assert ratio["small"] == pytest.approx(ratio["large"], rel=0.05)


@pytest.mark.parametrize(("step", "share"), [(0, 0), (9, 0), (10, 0.25), (12, 0.75), (20, 1)])
def test_losses_start_late_and_rise(step: int, share: float, clustered_activations: Tensor):
    x = clustered_activations[:300]
    scheduled = losses_at(step, x, entropy_start_step=10, entropy_warm_up_steps=4)
    at_once = losses_at(step, x)
    assert scheduled["entropy_loss"] == pytest.approx(share * at_once["entropy_loss"])


def test_a_zero_coefficient_leaves_its_loss_out(clustered_activations: Tensor):
    losses = losses_at(0, clustered_activations[:300], entropy_coefficient=0.0)
    assert "entropy_loss" not in losses
    assert "covariance_loss" not in losses


def test_the_entropy_loss_lowers_entropy_and_density(clustered_activations: Tensor):
    rates: dict[float, Tensor] = {}
    for coefficient in (0.0, 1e-2):
        config = BinaryEntropyTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, entropy_coefficient=coefficient, initial_firing_rate=0.1
        )
        trained = trainer_for(config, clustered_activations, steps=150).fit()
        assert fvu(trained, clustered_activations) < 0.5
        with torch.no_grad():
            rates[coefficient] = trained.encode(clustered_activations).mean(0)
    bits = {key: reference.entropy_bits(value[None]) for key, value in rates.items()}
    assert bits[1e-2] < 0.7 * bits[0.0]
    assert (rates[1e-2] > 0.1).sum() < (rates[0.0] > 0.1).sum()


@pytest.mark.parametrize(
    "field",
    [
        "entropy_coefficient",
        "covariance_coefficient",
        "covariance_sample",
        "entropy_start_step",
        "entropy_warm_up_steps",
    ],
)
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_wrong_fields_are_named(field: str, value: float):
    with pytest.raises(ValueError, match=field):
        BinaryEntropyTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **{field: value})  # type: ignore[arg-type]
