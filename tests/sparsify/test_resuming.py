"""A run that resumes from a checkpoint ends with the weights of an uninterrupted run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import Trainer
from torch import Tensor

from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.sparsify.trainers import trainer_on

D_IN = 8


@pytest.fixture
def activations() -> Tensor:
    return 0.05 * torch.randn(300, D_IN)


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(0, 300, (24, 10))


def start(activations: Tensor, rows: Tensor, output: Path, **settings: Any) -> Trainer:
    sae = BinarySparseCoderConfig(num_latents=64, k=4)
    defaults: dict[str, Any] = {
        "batch_size": 2,
        "init_seeds": [0, 1, 2],
        "auxk_alpha": 0.5,
        "dead_feature_threshold": 60,
    }
    return trainer_on(activations, rows, sae, output, **defaults | settings)


def assert_same(ours: Trainer, theirs: Trainer) -> None:
    assert ours.saes.keys() == theirs.saes.keys()
    for name, coder in theirs.saes.items():
        for key, values in coder.state_dict().items():
            assert torch.equal(ours.saes[name].state_dict()[key], values), (name, key)
        counts = theirs.num_tokens_since_fired[name]
        assert torch.equal(ours.num_tokens_since_fired[name], counts)


@pytest.mark.parametrize("optimizer", ["signum", "muon", "adam"])
@pytest.mark.parametrize("lr", [None, 1e-3])
def test_every_seed_s_coder_goes_on_with_its_own_state(
    lr: float | None, optimizer: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    settings: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "save_every": 6}
    unbroken = start(activations, rows, tmp_path / "unbroken", **settings)
    unbroken.fit()
    # At the end, AuxK trains dead latents, by counts of tokens that began before the checkpoint.
    assert any((counts > 60).any() for counts in unbroken.num_tokens_since_fired.values())

    broken = start(activations, rows, tmp_path / "broken", **settings)
    killed_at(broken, 9)
    going_on = start(activations, rows, tmp_path / "broken", **settings)
    going_on.load_state(str(tmp_path / "broken" / "run"))
    assert 0 < going_on.global_step < 9
    going_on.fit()
    assert_same(going_on, unbroken)


def killed_at(trainer: Trainer, batch: int) -> None:
    def kill(*_: Any) -> None:
        if trainer.global_step == batch:
            raise KeyboardInterrupt

    trainer.model.register_forward_pre_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def test_a_checkpoint_with_a_group_for_each_coder_is_gone_on_with(
    activations: Tensor, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Training resumes from checkpoints of earlier versions, with a parameter group a coder."""
    monkeypatch.setattr("sae_binary_ext.sparsify.steps.one_group_each", lambda _: None)
    start(activations, rows[:12], tmp_path, lr=1e-3).fit()
    monkeypatch.undo()
    trainer = start(activations, rows, tmp_path, lr=1e-3)
    trainer.load_state(str(tmp_path / "run"))
    trainer.fit()
    assert trainer.global_step == 12
    assert len(trainer.optimizers[0].param_groups) == 3


def test_the_best_of_every_seed_is_saved(activations: Tensor, rows: Tensor, tmp_path: Path):
    start(activations, rows, tmp_path, save_best=True).fit()
    saved = {str(path.parent) for path in (tmp_path / "run" / "best").rglob("sae.safetensors")}
    assert {path.rsplit("/", 1)[-1] for path in saved} == {"seed0", "seed1", "seed2"}
