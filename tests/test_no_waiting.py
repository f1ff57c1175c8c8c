"""A training step reads no value on the host, which would make it wait for a GPU.

Tensors on the meta device have no values, so reading one raises an error. Steps on them run the
same code as steps on a GPU.
"""

from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from sparsify import SparseCoder
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.training.finite import FiniteWatch

D_IN, LATENTS, K, TOKENS = 16, 512, 8, 64
LOSSES = {
    "reconstruction": {},
    "entropy": {"entropy": 1e-3},
    "covariance": {"entropy": 1e-3, "covariance": 1e-4},
    "sampled covariance": {"covariance": 1e-4, "covariance_sample": 100},
}
# For each way to choose latents: the fields of SAELens' config, and of sparsify's config.
SELECTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk": ({"selection": "topk"}, {"activation": "topk_binary"}),
    "topk, all learn": ({"surrogate_latents": "all", "selection": "topk"}, {"ste_latents": "all"}),
    "topk, near": ({"surrogate_latents": "near", "selection": "topk"}, {"ste_latents": "near"}),
    "groupmax": ({"selection": "groupmax"}, {"activation": "groupmax_binary"}),
    "threshold": ({"selection": "threshold"}, {"activation": "binary"}),
    "gumbel": ({"selection": "gumbel"}, {"activation": "gumbel_binary"}),
}
each_selected = pytest.mark.parametrize("selected", SELECTED)


@pytest.fixture(autouse=True)
def finite_watch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """FiniteWatch runs other code on a GPU, which tests/training/test_finite.py tests."""

    def check(self: FiniteWatch, values: Tensor, step: int) -> None:
        pass

    monkeypatch.setattr(FiniteWatch, "check", check)


def fields(losses: str, **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in LOSSES[losses].items()}


@pytest.mark.parametrize("losses", LOSSES)
@each_selected
def test_a_step_in_saelens_reads_nothing(selected: str, losses: str):
    sizes = {"d_in": D_IN, "d_sae": LATENTS, "k": K, **SELECTED[selected][0]}
    weights = fields(losses, entropy="entropy_coefficient", covariance="covariance_coefficient")
    if losses == "reconstruction":
        config: Any = BinaryTrainingSAEConfig(**sizes)
    else:
        config = BinaryEntropyTrainingSAEConfig(**sizes, **weights)
    sae = TrainingSAE.from_dict(config.to_dict()).to("meta")
    x = torch.randn(TOKENS, D_IN, device="meta")
    for step in range(2):  # the first step sets the initial parameters
        sae.training_forward_pass(TrainStepInput(x, {}, None, step, False)).loss.backward()
    assert all(parameter.grad is not None for parameter in sae.parameters())


@pytest.mark.parametrize("losses", LOSSES)
@each_selected
def test_a_step_of_a_transcoder_in_saelens_reads_nothing(selected: str, losses: str):
    weights = fields(losses, entropy="entropy_coefficient", covariance="covariance_coefficient")
    config = BinaryTranscoderTrainingSAEConfig(
        d_in=D_IN, d_sae=LATENTS, k=K, skip_connection=True, **SELECTED[selected][0], **weights
    )
    sae = TrainingSAE.from_dict(config.to_dict()).to("meta")
    pairs = torch.randn(TOKENS, 2 * D_IN, device="meta")
    sae._starts_fresh = False  # solving once for the decoder may wait
    sae.training_forward_pass(TrainStepInput(pairs, {}, None, 0, False)).loss.backward()
    assert sae.W_enc.grad is not None


@pytest.mark.parametrize("losses", LOSSES)
@each_selected
def test_a_step_in_sparsify_reads_nothing(selected: str, losses: str):
    weights = fields(losses, entropy="entropy_alpha", covariance="covariance_alpha")
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, **SELECTED[selected][1], **weights)
    coder = SparseCoder(D_IN, config).to("meta").train()
    x = torch.randn(TOKENS, D_IN, device="meta")
    output = coder(x)
    output.fvu.backward()
    assert output.latent_indices.shape == (LATENTS,)
    assert coder.W_dec.grad is not None


def test_the_meta_device_notices_a_read():
    with pytest.raises(RuntimeError, match="meta"):
        torch.randn(3, device="meta").sum().item()
