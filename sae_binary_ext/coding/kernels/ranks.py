"""Statistics over the batches of all ranks of a distributed run."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup


def sum_over_ranks(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum of each rank's x; x itself where group is None.

    For losses that every rank computes over all ranks' tokens. DistributedDataParallel averages
    the ranks' gradients, so each is sent back times the number of ranks and the average is the
    gradient of the loss over the global batch.

    Args:
        x: any shape, the same on every rank.
        group: the ranks; None for a single process.
    """
    if group is None:
        return x
    return _SumOverRanks.apply(x, group)  # pyright: ignore[reportReturnType]


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.ranks, None


def gather_rows(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Every rank's rows one after another, without gradient; x itself where group is None.

    Args:
        x: [rows, ...]; the number of rows may differ between ranks.
        group: the ranks; None for a single process.
    """
    if group is None:
        return x
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, x.detach().cpu(), group=group)
    return torch.cat(parts).to(x.device)
