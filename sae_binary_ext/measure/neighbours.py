"""Latents that resemble each other by what they write."""

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 1024


@torch.no_grad()
def nearest_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the other row in the most similar direction.

    Args:
        weight: [rows, width], at least two rows; a decoder's.

    Returns:
        Their cosines, float32 [rows], and which they are, int64 [rows], on the CPU. A row of
        zeros has cosine 0 with all.
    """
    unit = nn.functional.normalize(weight.float(), dim=1)
    cosines: list[Tensor] = []
    nearest: list[Tensor] = []
    for part in torch.arange(len(unit), device=unit.device).split(ROWS_AT_ONCE):
        products = unit[part] @ unit.T
        products[torch.arange(len(part), device=unit.device), part] = -torch.inf
        best = products.max(dim=1)
        cosines.append(best.values.cpu())
        nearest.append(best.indices.cpu())
    return torch.cat(cosines), torch.cat(nearest)
