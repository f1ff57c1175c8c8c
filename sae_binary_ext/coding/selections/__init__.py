"""What a selection is. Each file beside this one defines one; coding.selection lists them all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sae_binary_ext.coding.selection import CodeRule

PickLatents = Callable[[Tensor, int], tuple[Tensor, Tensor]]
MakeCodes = Callable[[Tensor, "CodeRule", bool], Tensor]


@dataclass(frozen=True)
class Selection:
    """A rule that says which latents may fire, and all that depends on which rule it is.

    It has either pick or make_codes. The last three attributes say what the files of Quirke et al.
    (arXiv 2509.25596) leave unsaid, and matter only for selections that such files hold.

    Attributes:
        name: its name in configs of SAELens.
        activation: its name in configs and files of sparsify, and in the first paper's files.
        pick: (margins [..., latents], k) to the picked margins and their latents, both [..., k].
            No latent stands twice in a row. A picked latent fires if its margin is positive, and
            it receives a gradient in any case.
        make_codes: (margins [..., latents], rule, noise) to codes [..., latents], for a selection
            that does not pick k latents. noise is True in training steps only. A selection that
            samples must give the same codes each time without noise.
        picks_largest: whether pick returns the k largest margins of a token.
        uses_k: whether k limits the number of latents that fire.
        groups: whether the latents are split into k contiguous groups of equal size.
        alone: whether a latent's code is the step of its own margin and of no other.
        samples: whether make_codes draws random numbers if noise is True.
        surrogates: the surrogates that it takes; None for all.
        subtracts_b_dec: whether the paper's autoencoders subtract b_dec from their input.
        has_thresholds: whether the paper's files hold thresholds. Without them they are zero.
        paper_temperature: the surrogate's temperature in the paper.
    """

    name: str
    activation: str
    pick: PickLatents | None = None
    make_codes: MakeCodes | None = None
    picks_largest: bool = False
    uses_k: bool = True
    groups: bool = False
    alone: bool = False
    samples: bool = False
    surrogates: tuple[str, ...] | None = None
    subtracts_b_dec: bool = True
    has_thresholds: bool = True
    paper_temperature: float = 2.0

    @property
    def default_learners(self) -> str:
        """The surrogate_latents of a coder in training if its config names none."""
        return "near" if self.picks_largest else "selected"
