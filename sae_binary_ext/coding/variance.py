"""How much of its input a coder leaves unexplained."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.kernels.ranks import sum_over_ranks


def total_variance(x: Tensor) -> Tensor:
    """Variance of a batch x [..., d] summed over its dimensions: the denominator of FVU.

    It is a scalar without gradient, float32 or the wider dtype of x.
    """
    rows = x.detach().flatten(0, -2)
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))
    return _squared_norms(rows - rows.mean(0)).mean()


@torch.no_grad()
def summed_variance(
    target: Tensor, group: ProcessGroup | None, of_whole_batch: Tensor | None = None
) -> Tensor:
    """Squared distances of all ranks' targets from their common mean, summed.

    It is a scalar in squared units of the target, float32 or wider; 0 if there is no token.

    Args:
        target: [tokens, d], this rank's.
        group: the ranks; None for a single process.
        of_whole_batch: scalar, the same sum over this rank's whole batch, if target is only a part
            of it. The distance between the ranks' means is then estimated from the part.
    """
    target = target.to(torch.promote_types(target.dtype, torch.float32))
    own_sum = target.sum(0)
    own_mean = own_sum / max(len(target), 1)
    own = _squared_norms(target - own_mean).sum()
    within = own if of_whole_batch is None else of_whole_batch
    if group is None:
        return within
    total = sum_over_ranks(torch.cat([own_sum, target.new_full((1,), len(target))]), group)
    between = len(target) * (own_mean - total[:-1] / total[-1]).square().sum()
    # One token, or equal tokens, have no variance from which to estimate.
    parts = torch.where(own > 0, within / own, 1.0)
    return sum_over_ranks(within + between * parts, group)


def _squared_norms(rows: Tensor) -> Tensor:
    """[..., d] to [...]. A sum of squares takes ten times as long on the CPU, and one norm over all
    rows has an error of 5e-4."""
    return torch.linalg.vector_norm(rows, dim=-1).square()
