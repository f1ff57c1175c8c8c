"""groupmax: the largest margin of each of k contiguous groups may fire, so L0 is at most k.

Quirke et al. (arXiv 2509.25596).
"""

import torch
from torch import Tensor

from sae_binary_ext.coding.selections import Selection


def pick_largest_of_groups(margin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The largest margin of each of k groups of margins [..., latents], and its latent."""
    values, place = margin.unflatten(-1, (k, -1)).max(dim=-1)
    group_size = margin.shape[-1] // k
    return values, place + torch.arange(k, device=margin.device) * group_size


GROUPMAX = Selection(
    "groupmax", activation="groupmax_binary", pick=pick_largest_of_groups, groups=True
)
