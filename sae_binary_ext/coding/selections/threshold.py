"""threshold: each latent fires if its margin is positive; L0 has no limit.

Quirke et al. (arXiv 2509.25596), who call it binary. With a threshold of zero it is also the step
of Cho et al. (arXiv 2509.20997).
"""

from typing import TYPE_CHECKING

from torch import Tensor

from sae_binary_ext.coding.selections import Selection
from sae_binary_ext.coding.surrogate import step

if TYPE_CHECKING:
    from sae_binary_ext.coding.selection import CodeRule


def step_each(margin: Tensor, rule: "CodeRule", noise: bool) -> Tensor:
    """The step of each margin [..., latents]."""
    return step(margin, rule.surrogate, rule.surrogate_temperature)


THRESHOLD = Selection(
    "threshold",
    activation="binary",
    make_codes=step_each,
    uses_k=False,
    alone=True,
    subtracts_b_dec=False,
)
