"""Adam's one pass has the updates of torch's plain Adam, and only binary coders get it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoderConfig
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from sae_binary_ext.saelens import BinaryTrainingSAE, BinaryTrainingSAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.training.one_pass import update_in_one_pass
from tests.sparsify.trainers import trainer_on

SHAPE = (30, 50)


class Made(TorchDispatchMode):
    """Counts arrays of the weight's size that operations make anew."""

    number = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **kwargs or {})
        is_new = not func._schema.is_mutable
        self.number += is_new and isinstance(found, Tensor) and found.shape == SHAPE
        return found


def steps(optimizer: Optimizer, weight: Tensor, number: int) -> int:
    """Take steps with the same random gradients; returns how many arrays the last step made."""
    generator = torch.Generator().manual_seed(1)
    made = Made()
    for _ in range(number):
        weight.grad = torch.randn(SHAPE, generator=generator, dtype=weight.dtype)
        made = Made()
        with made:
            optimizer.step()
    return made.number


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_pass_has_the_updates_of_plain_adam(dtype: torch.dtype, rtol: float):
    first = torch.randn(SHAPE, dtype=dtype)
    weights: list[Tensor] = []
    made: list[int] = []
    for in_one_pass in (False, True):
        weight = nn.Parameter(first.clone())
        optimizer = Adam([weight], lr=1e-2, betas=(0.9, 0.99))
        if in_one_pass:
            update_in_one_pass(optimizer)
        made.append(steps(optimizer, weight, 20))
        weights.append(weight.detach())
    torch.testing.assert_close(*weights, rtol=rtol, atol=0)
    assert made[0] >= 2
    assert made[1] == 0


def test_what_the_user_chose_and_other_optimizers_stay():
    weight = nn.Parameter(torch.randn(SHAPE))
    for settings in ({"foreach": True}, {"capturable": True}, {"differentiable": True}):
        optimizer = Adam([weight], **settings)
        update_in_one_pass(optimizer)
        assert optimizer.param_groups[0]["fused"] is None
    plain = Adam([weight], fused=False)
    update_in_one_pass(plain)
    assert plain.param_groups[0]["fused"] is False
    elsewhere = Adam([nn.Parameter(torch.empty(SHAPE, device="meta"))])
    update_in_one_pass(elsewhere)
    assert elsewhere.param_groups[0]["fused"] is None
    update_in_one_pass(SGD([weight], lr=1.0))


def trainer_of(sae: Any) -> SAETrainer[Any, Any]:
    settings = SAETrainerConfig(
        total_training_samples=64,
        train_batch_size_samples=16,
        lr=1e-3,
        lr_end=1e-4,
        device="cpu",
        autocast=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(settings, sae, iter(()))


def test_only_binary_coders_of_saelens_get_it():
    sizes = {"d_in": 8, "d_sae": 16, "k": 2}
    binary = trainer_of(BinaryTrainingSAE(BinaryTrainingSAEConfig(**sizes)))
    stock = trainer_of(TopKTrainingSAE(TopKTrainingSAEConfig(**sizes)))
    assert [group["fused"] for group in binary.optimizer.param_groups] == [True]
    assert [group["fused"] for group in stock.optimizer.param_groups] == [None]


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_only_binary_coders_of_sparsify_get_it(optimizer: str, tmp_path: Path):
    activations, rows = torch.randn(20, 6), torch.randint(20, (4, 5))
    passes: list[set[Any]] = []
    for sae in (
        BinarySparseCoderConfig(num_latents=12, k=2),
        BinarySparseCoderConfig(activation="topk", num_latents=12, k=2),
        SparseCoderConfig(num_latents=12, k=2),
    ):
        trainer = trainer_on(activations, rows, sae, tmp_path, optimizer=optimizer)
        adams = [each for each in trainer.optimizers if isinstance(each, Adam)]
        passes.append({group["fused"] for each in adams for group in each.param_groups})
    none = set() if optimizer == "signum" else {None}
    assert passes == [{True} if none else set(), none, none]
