"""Each binary activation passes the checks that sparsify's own tests make of its coders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.integration.sparsify_helpers import token_rows, trainer_for
from tests.small_models import VOCABULARY

pytestmark = pytest.mark.integration

each_activation = pytest.mark.parametrize(
    "activation", ["topk_binary", "groupmax_binary", "gumbel_binary", "binary"]
)


def config_of(activation: str, **fields: Any) -> BinarySparseCoderConfig:
    return BinarySparseCoderConfig(activation=activation, k=8, expansion_factor=8, **fields)


def updates(
    sae: BinarySparseCoderConfig, model: Path, output: Path, **settings: Any
) -> dict[str, Tensor]:
    """Change of each coder's encoder weights in training, as one vector."""
    tokens = token_rows(32, 32, VOCABULARY)
    trainer = trainer_for(model, sae, tokens, output, batch_size=16, lr=1e-3, **settings)
    before = {name: coder.encoder.weight.clone() for name, coder in trainer.saes.items()}
    trainer.fit()
    return {
        name: (coder.encoder.weight - before[name]).detach().flatten()
        for name, coder in trainer.saes.items()
    }


# Gumbel is left out, because it draws its samples separately for each part.
@pytest.mark.parametrize("activation", ["topk_binary", "groupmax_binary", "binary"])
def test_a_batch_in_parts_trains_as_a_whole_one(
    activation: str, tiny_model_folder: Path, tmp_path: Path
):
    # A rate of 0 turns off the start from data, which would see only the batch's first part.
    sae = config_of(activation, initial_firing_rate=0.0)
    whole = updates(sae, tiny_model_folder, tmp_path / "whole")
    parts = updates(sae, tiny_model_folder, tmp_path / "parts", micro_acc_steps=2)
    assert whole.keys() == parts.keys()
    for name, update in whole.items():
        assert update.norm() > 1e-6
        assert (parts[name] - update).norm() < 1e-3 * update.norm()


@each_activation
def test_every_seed_trains_a_coder_of_its_own(
    activation: str, tiny_model_folder: Path, tmp_path: Path
):
    moved = updates(config_of(activation), tiny_model_folder, tmp_path, init_seeds=[0, 42])
    assert moved.keys() == {f"layers.{i}.mlp/seed{seed}" for i in (0, 1) for seed in (0, 42)}
    assert all(update.norm() > 1e-6 for update in moved.values())
    assert not torch.equal(moved["layers.0.mlp/seed0"], moved["layers.0.mlp/seed42"])
    for name in moved:
        assert (tmp_path / "run" / name / "sae.safetensors").is_file()
