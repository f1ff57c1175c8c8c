"""Losses over several ranks equal the losses of one process that sees all tokens."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.distributed import ProcessGroup

from sae_binary_ext.coding import covariance_penalty, minibatch_entropy
from sae_binary_ext.coding.encode import binarise
from sae_binary_ext.coding.kernels.ranks import gather_rows, sum_over_ranks
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.variance import summed_variance

RULE = CodeRule("threshold")
LATENTS, SPLIT = 5, 12  # the first rank has fewer tokens than the second


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 0.5
    weight = torch.randn(4, LATENTS, generator=generator, dtype=torch.float64)
    return x, weight.requires_grad_()


def loss(x: Tensor, weight: Tensor, group: ProcessGroup | None) -> Tensor:
    codes = binarise(x @ weight, torch.zeros(LATENTS), RULE)
    error = (codes @ weight.T - x).square().sum()
    fvu = sum_over_ranks(error, group) / summed_variance(x, group)
    return fvu + 0.1 * minibatch_entropy(codes, group) + 0.1 * covariance_penalty(codes, group)


def on_one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    x, weight = batch()
    own = x[:SPLIT] if rank == 0 else x[SPLIT:]
    value = loss(own, weight, group)
    (gradient,) = torch.autograd.grad(value, weight)
    dist.all_reduce(gradient)
    variance = (own - own.mean(0)).square().sum()
    results = {
        "loss": value.detach(),
        "gradient": gradient / 2,  # DistributedDataParallel averages over ranks
        "rows": gather_rows(own, group),
        "variance of a part": summed_variance(own, group, variance),
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.integration
def test_two_ranks_have_the_loss_and_gradient_of_one_process(tmp_path: Path):
    multiprocessing.spawn(on_one_rank, (str(tmp_path),), nprocs=2)
    x, weight = batch()
    value = loss(x, weight, None)
    expected = {
        "loss": value.detach(),
        "gradient": torch.autograd.grad(value, weight)[0],
        "rows": x,
        "variance of a part": summed_variance(x, None),
    }
    for rank in range(2):
        for name, tensor in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(tensor, expected[name], msg=lambda text, n=name: n + text)
