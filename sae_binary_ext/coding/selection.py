"""From margins to codes: the table of selections, and CodeRule, which names one.

To add a selection, write a file in coding/selections and list it in SELECTIONS below.
"""

from dataclasses import dataclass

from torch import Tensor

from sae_binary_ext.checks import check_choice, check_positive
from sae_binary_ext.coding.kernels.largest import largest_and_next
from sae_binary_ext.coding.selections import Selection
from sae_binary_ext.coding.selections.groupmax import GROUPMAX
from sae_binary_ext.coding.selections.gumbel import GUMBEL
from sae_binary_ext.coding.selections.threshold import THRESHOLD
from sae_binary_ext.coding.selections.topk import TOPK
from sae_binary_ext.coding.surrogate import SURROGATES, step

SELECTIONS: dict[str, Selection] = {
    selection.name: selection for selection in (TOPK, GROUPMAX, THRESHOLD, GUMBEL)
}
SURROGATE_LATENTS = ("selected", "near", "all")
# With surrogate_latents "near", the latents that compete for each of a token's k places. A coder of
# k = 32 and 4608 latents had an FVU of 0.157 with 2 and of 0.161 with 4 (see
# docs/reconstruction-settings.md).
NEAR = 2


@dataclass(frozen=True)
class CodeRule:
    """How margins become codes; the part of a coder's config that is mathematics.

    Args:
        selection: which latents may fire, a key of SELECTIONS.
        k: the largest number of latents that fire on a token, or the number of groups. A
            selection without such a limit does not use it.
        surrogate: gradient of the step, a key of SURROGATES.
        surrogate_temperature: width of the surrogate, in units of the pre-activation.
        surrogate_latents: which latents learn from a token: "selected", those that the selection
            picks; "near", those with the 2k largest margins; or "all". The last two compete for
            the k places (see coding.competing), and only a selection that picks the largest
            margins takes them.

    Raises:
        ValueError: a field is out of range; the message names it, its value and the remedy.
    """

    selection: str = TOPK.name
    k: int = 32
    surrogate: str = "sigmoid"
    surrogate_temperature: float = 1.0
    surrogate_latents: str = "selected"

    def __post_init__(self) -> None:
        check_choice(SELECTIONS, selection=self.selection)
        check_choice(SURROGATES, surrogate=self.surrogate)
        taken = self.kind.surrogates
        if taken is not None and self.surrogate not in taken:
            raise ValueError(
                f"surrogate={self.surrogate!r}: selection {self.selection!r} takes surrogate "
                f"{' or '.join(map(repr, taken))} alone."
            )
        check_positive(surrogate_temperature=self.surrogate_temperature)
        if self.competes and not self.kind.picks_largest:
            largest = " and ".join(name for name, kind in SELECTIONS.items() if kind.picks_largest)
            raise ValueError(
                f"surrogate_latents={self.surrogate_latents!r} with selection={self.selection!r}: "
                f"{largest} alone takes it. Leave it out."
            )
        check_choice(SURROGATE_LATENTS, surrogate_latents=self.surrogate_latents)
        if self.k < 1:
            raise ValueError(f"k={self.k!r}: give a whole number of at least 1.")

    @property
    def kind(self) -> Selection:
        """The selection, with all that depends on it."""
        return SELECTIONS[self.selection]

    @property
    def competes(self) -> bool:
        """Whether more latents learn than fire, and share the k places."""
        return self.surrogate_latents != "selected"

    @property
    def every_latent_learns(self) -> bool:
        """Whether each latent gets a gradient from each token."""
        return self.surrogate_latents == "all" or self.kind.alone

    def learners(self, latents: int) -> int:
        """How many of a coder's latents learn from a token, if the selection picks them."""
        return min(NEAR * self.k, latents) if self.competes else self.k

    def next_learners(self, latents: int) -> int:
        """How many latents learn besides those that may fire, if the selection picks them."""
        return self.learners(latents) - self.k

    def check_latents(self, latents: int) -> None:
        """Raise ValueError if k does not suit a coder of this many latents."""
        if self.kind.uses_k and self.k > latents:
            raise ValueError(
                f"k={self.k}: more than the coder's {latents} latents; give k of at most {latents}."
            )
        if self.kind.groups and latents % self.k:
            raise ValueError(
                f"k={self.k}: selection {self.selection!r} splits the latents into k equal groups "
                f"and {latents} is not a multiple of {self.k}. Give k of "
                f"{next(k for k in range(self.k, 0, -1) if latents % k == 0)}, or another that "
                f"divides {latents}."
            )


def pick_latents(margin: Tensor, rule: CodeRule) -> tuple[Tensor, Tensor]:
    """Picked margins and their latents, both [..., k].

    Raises:
        ValueError: the rule's selection does not pick k latents.
    """
    if rule.kind.pick is None:
        picking = [name for name, selection in SELECTIONS.items() if selection.pick]
        raise ValueError(f"selection={rule.selection!r} has no index form; these have: {picking}.")
    return rule.kind.pick(margin, rule.k)


def pick_and_next(margin: Tensor, rule: CodeRule, more: int) -> tuple[Tensor, Tensor]:
    """Picked margins, the largest margins after these, and the latents of both.

    Args:
        margin: [..., latents], without gradient; overwritten if more is not 0.
        rule: its selection picks k latents.
        more: how many come after the picked; not 0 only if the selection picks the largest.

    Returns:
        Margins and latents, both [..., k + more], the k picked first.

    Raises:
        ValueError: the rule's selection does not pick k latents.
    """
    return largest_and_next(margin, rule.k, more) if more else pick_latents(margin, rule)


def scatter_codes(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """Dense codes [..., latents] of codes and latents [..., k]."""
    return codes.new_zeros((*codes.shape[:-1], latents)).scatter_(-1, index, codes)


def select_codes(margin: Tensor, rule: CodeRule, noise: bool) -> Tensor:
    """Codes [..., latents] of margins [..., latents], in the margins' dtype."""
    if rule.kind.make_codes is not None:
        return rule.kind.make_codes(margin, rule, noise)
    values, index = pick_latents(margin, rule)
    codes = step(values, rule.surrogate, rule.surrogate_temperature)
    return scatter_codes(codes, index, margin.shape[-1])
