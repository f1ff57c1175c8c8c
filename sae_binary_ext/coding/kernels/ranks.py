"""Statistics over the batches of all ranks of a distributed run."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup


def sum_over_ranks(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum of x over ranks; x itself if group is None. x has the same shape on all ranks.

    Use it for losses that each rank computes over the tokens of all ranks. The gradient is
    multiplied by the number of ranks, because DistributedDataParallel averages the ranks'
    gradients. The average is then the gradient of the loss over the global batch.
    """
    return x if group is None else _SumOverRanks.apply(x, group)  # pyright: ignore


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
    """The rows of all ranks' x, [rows, ...], without gradient; x itself if group is None.

    The number of rows may differ between ranks.
    """
    if group is None:
        return x
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, x.detach().cpu(), group=group)
    return torch.cat(parts).to(x.device)
