"""SAELens' setting compile_sae works: torch.compile compiles the whole training step."""

import copy
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig

pytestmark = pytest.mark.integration
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 256, "k": 8}
CONFIGS = [
    BinaryTrainingSAEConfig(**SIZES),
    BinaryTrainingSAEConfig(**SIZES, surrogate_latents="all"),
    BinaryTrainingSAEConfig(**SIZES, surrogate_latents="near"),
    BinaryEntropyTrainingSAEConfig(**SIZES, covariance_coefficient=1e-5),
]


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda config: f"{config.selection}-{config.surrogate_latents}"
)
def test_a_compiled_step_learns_what_a_plain_one_does(config: BinaryTrainingSAEConfig):
    torch.manual_seed(0)
    plain = TrainingSAE.from_dict(config.to_dict())
    step = TrainStepInput(torch.randn(128, 16), {}, None, 0, False)
    plain.training_forward_pass(step)  # the first step sets the initial parameters
    compiled = copy.deepcopy(plain)
    # LanguageModelSAETrainingRunner does the same if compile_sae is set.
    compiled.training_forward_pass = torch.compile(compiled.training_forward_pass, mode="default")

    outputs = [sae.training_forward_pass(step) for sae in (plain, compiled)]
    for output in outputs:
        output.loss.backward()

    assert torch.equal(*(each.feature_acts.to_dense() for each in outputs))
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name).grad, parameter.grad)
