"""Turns margins into codes: the table of selections, and CodeRule, which names a selection.

The selections are those of Quirke et al. (arXiv 2509.25596). To add a selection, write a function
below and a row of _KINDS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checks import check_choice, check_positive
from sae_binary_ext.coding.kernels.largest import largest, largest_and_next
from sae_binary_ext.coding.surrogate import SURROGATES, step


@dataclass(frozen=True)
class Selection:
    """A rule that says which latents may fire, with every fact that depends on the rule.

    A Selection has either pick or make_codes. The last three attributes are facts from Quirke et
    al. (arXiv 2509.25596) that their files do not state. Selections from other sources leave them
    out.

    Attributes:
        name: the selection's name in SAELens configs.
        activation: the name in sparsify's configs and files, and in those of Quirke et al.
        pick: function of (margins [..., latents], k) that returns the picked margins and their
            latents, both [..., k]. No latent appears twice in a row. A picked latent fires if its
            margin is positive. A picked latent gets a gradient even if it does not fire.
        make_codes: function of (margins [..., latents], rule, noise) that returns codes [...,
            latents], for a selection that does not pick k latents. noise is True in training steps
            only. Without noise, the codes must be the same each time.
        picks_largest: whether pick returns the k largest margins of a token.
        uses_k: whether k limits the number of latents that fire.
        groups: whether the latents are split into k contiguous groups of equal size.
        alone: whether a latent's code depends on its own margin only.
        samples: whether make_codes draws random numbers if noise is True.
        surrogates: the surrogates that the selection accepts; None for all.
        subtracts_b_dec: whether the paper's autoencoders subtract b_dec from their input.
        has_thresholds: whether the paper's files hold thresholds. If not, the thresholds are zero.
        paper_temperature: the surrogate's temperature in the paper.
    """

    name: str
    activation: str
    pick: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None
    make_codes: Callable[[Tensor, "CodeRule", bool], Tensor] | None = None
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
        """The default of surrogate_latents for a coder in training."""
        return "near" if self.picks_largest else "selected"


def pick_largest_of_groups(margin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """groupmax: the largest margin of each of k contiguous groups may fire, so L0 is at most k."""
    values, place = margin.unflatten(-1, (k, -1)).max(dim=-1)
    group_size = margin.shape[-1] // k
    return values, place + torch.arange(k, device=margin.device) * group_size


def step_each(margin: Tensor, rule: "CodeRule", noise: bool) -> Tensor:
    """threshold: each latent fires if its margin is positive; L0 has no limit.

    The paper calls this selection binary. With a threshold of zero it is also the step of Cho et
    al. (arXiv 2509.20997).
    """
    return _fires(margin, rule)


def one_of_each_group(margin: Tensor, rule: "CodeRule", noise: bool) -> Tensor:
    """gumbel: one latent of each of k contiguous groups fires, so L0 is k.

    With noise, the latent is sampled from the group's softmax at temperature 1; without noise, it
    is the group's largest. The gradient is that of the softmax at the rule's temperature, with the
    noise held fixed.
    """
    groups = margin.unflatten(-1, (rule.k, -1))
    if noise:
        # -log of an exponential sample is a Gumbel sample.
        groups = groups - torch.empty_like(groups).exponential_().log()
    return _OneHot.apply(groups, rule.surrogate_temperature).flatten(-2)  # pyright: ignore


class _OneHot(torch.autograd.Function):
    """Exact one-hot of the largest entry; backward differentiates softmax(logits / T).

    torch's own gumbel_softmax(hard=True) returns hard - soft + soft, which rounds to values that
    are not exactly 0 or 1.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        probability = torch.softmax(logits / ctx.temperature, dim=-1)
        centred = grad_outputs[0] - (probability * grad_outputs[0]).sum(-1, keepdim=True)
        return probability * centred / ctx.temperature, None


THRESHOLD = Selection(
    "threshold",
    activation="binary",
    make_codes=step_each,
    uses_k=False,
    alone=True,
    subtracts_b_dec=False,
)
_KINDS = (
    # The k largest margins of a token may fire, so L0 is at most k.
    Selection("topk", activation="topk_binary", pick=largest, picks_largest=True),
    Selection("groupmax", activation="groupmax_binary", pick=pick_largest_of_groups, groups=True),
    THRESHOLD,
    Selection(
        "gumbel",
        activation="gumbel_binary",
        make_codes=one_of_each_group,
        groups=True,
        samples=True,
        # A softmax's gradient is the sigmoid surrogate for more than two outcomes.
        surrogates=("sigmoid",),
        has_thresholds=False,
        paper_temperature=0.5,
    ),
)
SELECTIONS: dict[str, Selection] = {kind.name: kind for kind in _KINDS}
SURROGATE_LATENTS = ("selected", "near", "all")
# If surrogate_latents is "near", this many latents compete for each of a token's k places. A coder
# of k = 32 and 4608 latents had an FVU of 0.157 with 2 and of 0.161 with 4 (see
# docs/reconstruction-settings.md).
NEAR = 2


@dataclass(frozen=True)
class CodeRule:
    """How margins become codes: the mathematical part of a coder's config.

    Args:
        selection: which latents may fire, a key of SELECTIONS.
        k: the largest number of latents that fire on a token, or the number of groups. A selection
            without a limit on L0 ignores k.
        surrogate: gradient of the 0/1 step, a key of SURROGATES.
        surrogate_temperature: width of the surrogate, in units of the pre-activation.
        surrogate_latents: which latents learn from a token: "selected", those that the selection
            picks; "near", those with the 2k largest margins; or "all". Latents of the last two
            kinds compete for the k places (see coding.competing). Only a selection that picks the
            largest margins accepts "near" and "all".

    Raises:
        ValueError: a field is out of range; the message names the field, its value and the remedy.
    """

    selection: str = "topk"
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
        """The Selection that this rule names."""
        return SELECTIONS[self.selection]

    @property
    def competes(self) -> bool:
        """Whether more latents learn than may fire, and compete for the k places."""
        return self.surrogate_latents != "selected"

    @property
    def every_latent_learns(self) -> bool:
        """Whether each latent gets a gradient from each token."""
        return self.surrogate_latents == "all" or self.kind.alone

    def learners(self, latents: int) -> int:
        """Number of latents that learn from a token, for a selection that picks k latents."""
        return min(NEAR * self.k, latents) if self.competes else self.k

    def next_learners(self, latents: int) -> int:
        """Number of latents that learn but may not fire, for a selection that picks k latents."""
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
    """As pick_latents, then the `more` next largest margins; both results are [..., k + more].

    The margins [..., latents] have no gradient, and are overwritten if more is not 0. If the
    selection does not pick the largest margins, more must be 0.
    """
    return largest_and_next(margin, rule.k, more) if more else pick_latents(margin, rule)


def scatter_codes(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """Dense codes [..., latents] from codes and their latents, both [..., k]."""
    return codes.new_zeros((*codes.shape[:-1], latents)).scatter_(-1, index, codes)


def select_codes(margin: Tensor, rule: CodeRule, noise: bool) -> Tensor:
    """Codes [..., latents] of margins [..., latents], in the margins' dtype."""
    if rule.kind.make_codes is not None:
        return rule.kind.make_codes(margin, rule, noise)
    values, index = pick_latents(margin, rule)
    codes = _fires(values, rule)
    return scatter_codes(codes, index, margin.shape[-1])


def _fires(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes of margins; outside of training they need no surrogate."""
    if not margin.requires_grad:
        return (margin > 0).to(margin.dtype)
    return step(margin, rule.surrogate, rule.surrogate_temperature)
