"""Which latents may fire: topk, groupmax, threshold and gumbel.

Formulas: Quirke et al. (arXiv 2509.25596); threshold with a zero threshold is also the step of
Cho et al. (arXiv 2509.20997).

Adding a selection: one function below and one entry in SELECTIONS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checks import check_choice, check_positive
from sae_binary_ext.coding.kernels.largest import largest, largest_and_next
from sae_binary_ext.coding.surrogate import SURROGATES, step

SURROGATE_LATENTS = ("selected", "near", "all")
# Of surrogate_latents "near": the latents of a token that compete for each of its k places. With 4
# instead, a coder of k = 32 and 4608 latents had an FVU of 0.161 instead of 0.157 (see
# docs/reconstruction-settings.md).
NEAR = 2


@dataclass(frozen=True)
class CodeRule:
    """How margins become codes; the part of a coder's config that is mathematics.

    Args:
        selection: which latents may fire, a key of SELECTIONS.
        k: latents a token at most (topk) or number of groups (groupmax, gumbel); threshold has
            no limit and does not use it.
        surrogate: gradient of the step, a key of SURROGATES. Gumbel has its own gradient, the
            softmax's, which is the sigmoid surrogate for more than two outcomes: it takes
            "sigmoid" alone.
        surrogate_temperature: width of the surrogate, in units of the pre-activation.
        surrogate_latents: which latents learn from a token: "selected", those that the selection
            picks; and with topk alone "near", the 2k of the largest margins, or "all", which
            compete for the k places (see coding.competing). With threshold all learn.

    Raises:
        ValueError: a field is out of range; the message names it, its value and the remedy.
    """

    selection: str = "topk"
    k: int = 32
    surrogate: str = "sigmoid"
    surrogate_temperature: float = 1.0
    surrogate_latents: str = "selected"

    def __post_init__(self) -> None:
        check_choice(SELECTIONS, selection=self.selection)
        check_choice(SURROGATES, surrogate=self.surrogate)
        if self.selection == "gumbel" and self.surrogate != "sigmoid":
            raise ValueError(
                f"surrogate={self.surrogate!r}: selection 'gumbel' learns through its softmax and "
                "takes surrogate 'sigmoid' alone."
            )
        check_positive(surrogate_temperature=self.surrogate_temperature)
        if self.competes and self.selection != "topk":
            raise ValueError(
                f"surrogate_latents={self.surrogate_latents!r} with selection={self.selection!r}: "
                "topk alone takes it. Leave it out."
            )
        check_choice(SURROGATE_LATENTS, surrogate_latents=self.surrogate_latents)
        if self.k < 1:
            raise ValueError(f"k={self.k!r}: give a whole number of at least 1.")

    @property
    def competes(self) -> bool:
        """Whether more latents learn than fire, and share what k leaves room for."""
        return self.surrogate_latents != "selected"

    @property
    def every_latent_learns(self) -> bool:
        """Whether a token hands a gradient to every latent."""
        return self.surrogate_latents == "all" or SELECTIONS[self.selection].alone

    def learners(self, latents: int) -> int:
        """How many of a coder's latents learn from a token, where the rule picks them."""
        return min(NEAR * self.k, latents) if self.competes else self.k

    def next_learners(self, latents: int) -> int:
        """How many latents learn beside those that may fire, where the rule picks them."""
        return self.learners(latents) - self.k

    def check_latents(self, latents: int) -> None:
        """Raise ValueError where k does not suit a coder of this many latents."""
        limits = SELECTIONS[self.selection]
        if limits.uses_k and self.k > latents:
            raise ValueError(
                f"k={self.k}: more than the coder's {latents} latents; give k of at most {latents}."
            )
        if limits.groups and latents % self.k:
            raise ValueError(
                f"k={self.k}: selection {self.selection!r} splits the latents into k equal groups "
                f"and {latents} is not a multiple of {self.k}. Give k of "
                f"{next(k for k in range(self.k, 0, -1) if latents % k == 0)}, or another that "
                f"divides {latents}."
            )


@dataclass(frozen=True)
class Selection:
    """One selection rule: either which latents it picks or how it makes whole codes.

    Attributes:
        pick: (margins [..., latents], rule) to the picked margins and their latents, both
            [..., k], no latent twice in a row. Picked latents fire where their margin is positive
            and receive a gradient whether they fire or not.
        make_codes: (margins [..., latents], rule, noise) to codes [..., latents], for rules whose
            codes have no fixed number of candidates. noise is True in a training step alone: a
            rule that samples must be deterministic without it.
        uses_k: whether k limits the latents.
        groups: whether the latents are split into k contiguous groups.
        alone: whether a code is the step of its own margin, whatever the other latents' are.
    """

    pick: Callable[[Tensor, CodeRule], tuple[Tensor, Tensor]] | None = None
    make_codes: Callable[[Tensor, CodeRule, bool], Tensor] | None = None
    uses_k: bool = True
    groups: bool = False
    alone: bool = False


def learning_by_default(selection: str) -> str:
    """The surrogate_latents of a coder in training whose config names none."""
    return "near" if selection == "topk" else "selected"


def topk(margin: Tensor, rule: CodeRule) -> tuple[Tensor, Tensor]:
    """The k largest margins: L0 is at most k."""
    return largest(margin, rule.k)


def groupmax(margin: Tensor, rule: CodeRule) -> tuple[Tensor, Tensor]:
    """The largest margin of each of k contiguous groups: L0 is at most k."""
    values, place = margin.unflatten(-1, (rule.k, -1)).max(dim=-1)
    group_size = margin.shape[-1] // rule.k
    return values, place + torch.arange(rule.k, device=margin.device) * group_size


def threshold(margin: Tensor, rule: CodeRule, noise: bool) -> Tensor:
    """Every latent fires where its margin is positive; no limit on L0."""
    return step(margin, rule.surrogate, rule.surrogate_temperature)


def gumbel(margin: Tensor, rule: CodeRule, noise: bool) -> Tensor:
    """One latent of each of k contiguous groups fires: L0 is k.

    With noise the latent is a sample of the group's softmax at temperature 1, without it the
    largest. Gradient: that of the softmax at the rule's temperature, the noise held fixed.
    """
    groups = margin.unflatten(-1, (rule.k, -1))
    if noise:
        # -log of an exponential sample is a Gumbel sample.
        groups = groups - torch.empty_like(groups).exponential_().log()
    return _OneHot.apply(groups, rule.surrogate_temperature).flatten(-2)  # pyright: ignore


class _OneHot(torch.autograd.Function):
    """Exact one-hot of the largest entry; backward through softmax(logits / T).

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


def pick_latents(margin: Tensor, rule: CodeRule) -> tuple[Tensor, Tensor]:
    """Picked margins and their latents, both [..., k].

    Raises:
        ValueError: the rule's selection has no fixed number of candidates.
    """
    pick = SELECTIONS[rule.selection].pick
    if pick is None:
        picking = [name for name, selection in SELECTIONS.items() if selection.pick]
        raise ValueError(f"selection={rule.selection!r} has no index form; these have: {picking}.")
    return pick(margin, rule)


def pick_and_next(margin: Tensor, rule: CodeRule, more: int) -> tuple[Tensor, Tensor]:
    """Picked margins and the largest after these, and their latents.

    Args:
        margin: [..., latents], without gradient; overwritten where more come after the picked.
        rule: its selection has a fixed number of candidates.
        more: how many come after the picked, with topk alone.

    Returns:
        Margins and latents, both [..., k + more], the k picked first.

    Raises:
        ValueError: the rule's selection has no fixed number of candidates.
    """
    return largest_and_next(margin, rule.k, more) if more else pick_latents(margin, rule)


def scatter_codes(codes: Tensor, index: Tensor, latents: int) -> Tensor:
    """Dense codes [..., latents] of codes and latents [..., k]."""
    return codes.new_zeros((*codes.shape[:-1], latents)).scatter_(-1, index, codes)


def select_codes(margin: Tensor, rule: CodeRule, noise: bool) -> Tensor:
    """Codes [..., latents] of margins [..., latents], in the margins' dtype."""
    make_codes = SELECTIONS[rule.selection].make_codes
    if make_codes is not None:
        return make_codes(margin, rule, noise)
    values, index = pick_latents(margin, rule)
    codes = step(values, rule.surrogate, rule.surrogate_temperature)
    return scatter_codes(codes, index, margin.shape[-1])


SELECTIONS: dict[str, Selection] = {
    "topk": Selection(pick=topk),
    "groupmax": Selection(pick=groupmax, groups=True),
    "threshold": Selection(make_codes=threshold, uses_k=False, alone=True),
    "gumbel": Selection(make_codes=gumbel, groups=True),
}
