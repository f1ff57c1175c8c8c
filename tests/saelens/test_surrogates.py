import pytest
import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from sae_binary_ext.coding import SURROGATES
from sae_binary_ext.saelens import BinaryTrainingSAEConfig


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_coder_trains_with_each_surrogate(surrogate: str):
    config = BinaryTrainingSAEConfig(d_in=8, d_sae=64, k=4, surrogate=surrogate)
    coder = TrainingSAE.from_dict(TrainingSAEConfig.from_dict(config.to_dict()).to_dict())
    step = TrainStepInput(torch.randn(100, 8), {}, None, 0, False)
    coder.training_forward_pass(step).loss.backward()
    gradient = coder.W_enc.grad
    assert gradient is not None
    assert gradient.any()
    assert gradient.isfinite().all()
