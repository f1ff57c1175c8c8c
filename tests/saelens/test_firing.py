"""The losses on latents that never fire and on those that fire too often."""

from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from tests.saelens.helpers import fvu, trainer_for

D_IN, D_SAE, K = 16, 128, 8
STEPS = 500
KINDS = {
    "binary": BinaryTrainingSAEConfig,
    "selected": BinaryTrainingSAEConfig,
    "binary_entropy": BinaryEntropyTrainingSAEConfig,
    "binary_transcoder": BinaryTranscoderTrainingSAEConfig,
}


def config_of(kind: str, coefficient: float = 0.0, **fields: Any) -> Any:
    fields = {"surrogate": "rectangle", "pre_act_loss_coefficient": coefficient} | fields
    if kind == "selected":
        fields["surrogate_latents"] = "selected"
    return KINDS[kind](d_in=D_IN, d_sae=D_SAE, k=K, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formula_and_reaches_the_biases_of_dead_latents_alone(kind: str):
    batch = torch.randn(50, D_IN * (1 + (kind == "binary_transcoder")))
    target = batch[:, -D_IN:]
    dead = torch.arange(D_SAE) < 3
    gradients: list[dict[str, Tensor]] = []
    losses: dict[str, Tensor] = {}
    for coefficient in (0.0, 0.25):
        torch.manual_seed(0)
        sae = TrainingSAE.from_dict(config_of(kind, coefficient).to_dict())
        output = sae.training_forward_pass(TrainStepInput(batch, {}, dead, 0, False))
        output.loss.backward()
        assert ("pre_act_loss" in output.losses) == (coefficient > 0)
        gradients.append({name: p.grad for name, p in sae.named_parameters() if p.grad is not None})
        losses, biases = output.losses, sae.b_enc.detach()

    variance = (target - target.mean(0)).square().sum(-1).mean()
    expected = -0.25 * variance * biases[dead].sum()
    torch.testing.assert_close(losses["pre_act_loss"].detach(), expected)
    without, with_loss = gradients
    without["b_enc"] -= 0.25 * variance * dead
    torch.testing.assert_close(with_loss, without)


@pytest.mark.parametrize(("coefficient", "fire"), [(0.0, False), (1e-2, True)])
@pytest.mark.parametrize("kind", ["binary", "selected", "binary_entropy"])
def test_dead_latents_fire_again(
    kind: str, coefficient: float, fire: bool, clustered_activations: Tensor
):
    trainer = trainer_for(
        config_of(kind, coefficient),
        clustered_activations,
        steps=STEPS,
        lr=2e-2,
        dead_feature_window=5,
    )
    trainer.step(clustered_activations[:200])  # the first step sets the initial parameters
    with torch.no_grad():
        # The bias is too low for the surrogate's gradient, but the loss can raise it in time.
        trainer.sae.b_enc[:4] = -12.0
    trainer.fit()
    fired_since = trainer.n_forward_passes_since_fired[:4] < STEPS - 1
    assert fired_since.all() if fire else not fired_since.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_loss_is_the_formula_in_float64(kind: str):
    torch.manual_seed(0)
    rate, coefficient = 0.05, 0.3
    losses = {"dense_coefficient": coefficient, "dense_rate": rate, "initial_firing_rate": rate}
    config = config_of(kind, dtype="float64", surrogate="sigmoid", **losses)
    sae = TrainingSAE.from_dict(config.to_dict())
    width = D_IN * (1 + (kind == "binary_transcoder"))
    start, batch = torch.randn(2, 50, width, dtype=torch.float64)
    for rows in (start, batch):  # the first batch sets the initial parameters, at equal rates
        output = sae.training_forward_pass(TrainStepInput(rows, {}, None, 0, False))
    loss = output.losses["dense_loss"]
    loss.backward()

    plain = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    x, target = batch[:, :D_IN], batch[:, -D_IN:]
    origin = 0 if kind == "binary_transcoder" else plain["b_dec"].detach()
    pre = (x - origin) @ plain["W_enc"] + plain["b_enc"]
    codes = reference.codes(pre, plain["log_threshold"], sae.rule)
    over = codes.detach().mean(0) > rate
    assert 0 < over.sum() < D_SAE
    variance = (target - target.mean(0)).square().sum(-1).mean()
    expected = coefficient * variance * reference.excess_rate(codes, rate)
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    for name in ("W_enc", "b_enc", "log_threshold"):
        gradient = sae.get_parameter(name).grad
        torch.testing.assert_close(gradient, plain[name].grad, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", ["binary", "selected", "binary_entropy"])
def test_latents_stay_below_the_dense_rate(kind: str, clustered_activations: Tensor):
    densest: dict[float, float] = {}
    for coefficient in (0.0, 0.1):
        config = config_of(
            kind, surrogate="sigmoid", dense_coefficient=coefficient, dense_rate=0.15
        )
        trained = trainer_for(config, clustered_activations, steps=300).fit()
        assert fvu(trained, clustered_activations) < 0.5
        with torch.no_grad():
            densest[coefficient] = trained.encode(clustered_activations).mean(0).max().item()
    assert densest[0.0] > 0.2 > densest[0.1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre_act_loss_coefficient": -1e-3}, "pre_act_loss_coefficient=-0.001"),
        ({"pre_act_loss_coefficient": float("nan")}, "pre_act_loss_coefficient=nan"),
        ({"dense_coefficient": float("inf")}, "dense_coefficient=inf"),
        ({"dense_rate": 0.0}, "dense_rate=0.0.*between 0 and 1"),
        ({"dense_rate": 1.0}, "dense_rate=1.0"),
        ({"dense_rate": float("nan")}, "dense_rate=nan"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        config_of("binary", **fields)
