"""pre_act_loss_coefficient: the biases of dead latents come up until they fire."""

from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from tests.saelens.helpers import trainer_for

D_IN, D_SAE, K = 16, 128, 8
STEPS = 500
KINDS = {
    "binary": BinaryTrainingSAEConfig,
    "selected": BinaryTrainingSAEConfig,
    "binary_entropy": BinaryEntropyTrainingSAEConfig,
    "binary_transcoder": BinaryTranscoderTrainingSAEConfig,
}


def config_of(kind: str, coefficient: float) -> Any:
    fields: dict[str, Any] = {"surrogate": "rectangle", "pre_act_loss_coefficient": coefficient}
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
    trainer.step(clustered_activations[:200])  # sets the initial parameters
    with torch.no_grad():
        # Too far for the surrogate to reach, near enough for the steps there are.
        trainer.sae.b_enc[:4] = -12.0
    trainer.fit()
    fired_since = trainer.n_forward_passes_since_fired[:4] < STEPS - 1
    assert fired_since.all() if fire else not fired_since.any()


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_a_wrong_coefficient_is_named(value: float):
    with pytest.raises(ValueError, match="pre_act_loss_coefficient"):
        config_of("binary", value)
