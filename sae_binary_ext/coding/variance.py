"""Total variance of activations, the denominator of FVU (fraction of variance unexplained)."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.kernels.ranks import sum_over_ranks


def total_variance(x: Tensor) -> Tensor:
    """Variance of a batch x [..., d] summed over its dimensions: the denominator of FVU.

    The result is a scalar without gradient, in float32, or in the dtype of x if that is wider.
    """
    rows = x.detach().flatten(0, -2)
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))
    return _squared_norms(rows - rows.mean(0)).mean()


@torch.no_grad()
def summed_variance(
    target: Tensor, group: ProcessGroup | None, of_whole_batch: Tensor | None = None
) -> Tensor:
    """Sum of the squared distances of all ranks' targets from their common mean.

    The sum is a scalar in squared units of the target, float32 or wider; 0 if there is no token.

    Args:
        target: this rank's targets, [tokens, d].
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
    # A part of one token, or of equal tokens, has no variance to estimate from.
    parts = torch.where(own > 0, within / own, 1.0)
    return sum_over_ranks(within + between * parts, group)


def _squared_norms(rows: Tensor) -> Tensor:
    """Squared norms [...] of rows [..., d]. On the CPU, summing squares takes ten times as long as
    norms of rows. One norm over all rows has an error of 5e-4."""
    return torch.linalg.vector_norm(rows, dim=-1).square()
