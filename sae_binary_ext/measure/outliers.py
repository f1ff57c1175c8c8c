"""Tokens whose activations have a norm far from all others'."""

import math
from collections.abc import Mapping

from torch import Tensor


class OutlyingTokens:
    """Finds tokens with a norm of more than so many times the median at any hook, and counts them.

    Some tokens beside the first one become attention sinks ("massive activations", Sun et al.,
    arXiv 2402.17762). From SmolLM2's layer 12 on, one token in a thousand has 190 times the median
    norm, and ten of 20,000 hold four fifths of the variance: they would decide every figure there.

    The median of a hook is that of the first batch, so that how much is read changes no token.

    Args:
        limit: times the median; inf finds none.

    Attributes:
        left_out: tokens found since the last call of start.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.start()

    def start(self) -> None:
        """Forget the medians and the count: another reading begins."""
        self._medians: dict[str, float] = {}
        self.left_out = 0

    def within(self, found: Mapping[str, Tensor], where: Tensor) -> Tensor:
        """The positions that are left.

        Args:
            found: of each hook, [rows, context, width].
            where: bool [rows, context], the positions that count.

        Returns:
            bool [rows, context], those of them within the limit at all hooks.
        """
        if self._limit == math.inf or not where.any():
            return where
        left = where
        for hook, activations in found.items():
            norms = activations.float().norm(dim=-1).cpu()
            median = self._medians.setdefault(hook, norms[where].median().item())
            left = left & (norms <= self._limit * median)
        self.left_out += int((where & ~left).sum())
        return left
