"""A change of a coder's codes: latents to set, clear or flip, and on which tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checks import check_at_least, check_positive
from sae_binary_ext.steering.rule import Rule, check_latents, parse_rule
from sae_binary_ext.steering.steered_coder import SteeredCoder, steered_coder

OPERATIONS = ("set", "clear", "flip")


@dataclass(frozen=True)
class CodeChange:
    """Latents of one coder to change while a model runs.

    Attributes:
        coder: a coder of SAELens or sparsify, an autoencoder or a transcoder.
        set, clear, flip: latents to turn on, to turn off, and to turn on where they are silent and
            off where they are active.
        where: change only tokens on which this rule over the same coder's latents holds, a Rule or
            a text such as "1203 & !7". The rule reads the codes before any change.
        first_position: change only tokens from this position of a row on. Padding does not count.
            By default the first token stays as it is, because most models have an attention sink
            there.
        strength: the activation of a latent that is on, for coders with values. A binary coder
            takes none.
        hook: SAELens' hook or the module's name (layers.9), if the coder's files name none.

    Raises:
        ValueError: no latent is named, one is named twice or out of range, `where` cannot be read,
            strength is given for a binary coder or missing, or steering cannot use the coder.
    """

    coder: Any
    set: Sequence[int] = ()
    clear: Sequence[int] = ()
    flip: Sequence[int] = ()
    where: Rule | str | None = None
    first_position: int = 1
    strength: float | None = None
    hook: str | None = None
    own: SteeredCoder = field(init=False, repr=False, compare=False)
    rule: Rule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = steered_coder(self.coder)
        rule = parse_rule(self.where) if isinstance(self.where, str) else self.where or Rule()
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "rule", rule)
        check_at_least(0, first_position=self.first_position)
        check_operations(self.set, self.clear, self.flip)
        for name in OPERATIONS:
            check_latents(tuple(getattr(self, name)), own.latents, name)
        rule.check(own.latents)
        self._check_strength()

    @property
    def latents(self) -> tuple[int, ...]:
        """All latents that this changes, in rising order."""
        return tuple(sorted({*self.set, *self.clear, *self.flip}))

    def apply(self, now: Tensor, where: Tensor, columns: dict[int, int]) -> None:
        """Change codes in place.

        now: [tokens, columns], codes of some latents, after earlier changes.
        where: bool [tokens], the tokens to change.
        columns: the column of each latent.
        """
        value = 1.0 if self.strength is None else self.strength
        for latents, new in ((self.set, value), (self.clear, 0.0)):
            for latent in latents:
                now[where, columns[latent]] = new
        for latent in self.flip:
            old = now[where, columns[latent]]
            now[where, columns[latent]] = torch.where(old == 0, value, 0.0).to(old)

    def _check_strength(self) -> None:
        if self.own.is_binary and self.strength is not None:
            raise ValueError(
                f"strength={self.strength}: a latent of a binary coder is 0 or 1, and its decoder "
                "row has its magnitude. Leave strength out."
            )
        needs = [name for name in ("set", "flip") if getattr(self, name)]
        if not self.own.is_binary and needs and self.strength is None:
            raise ValueError(
                f"strength=None: {type(self.coder).__name__} has codes with values, so "
                f"{' and '.join(needs)} need a value to turn a latent on with. Give strength, in "
                "units of its activations."
            )
        if self.strength is not None:
            check_positive(strength=self.strength)


def check_operations(set: Sequence[int], clear: Sequence[int], flip: Sequence[int]) -> None:
    """Raise ValueError if no latent is named, or if a latent is named for two operations."""
    named = dict(zip(OPERATIONS, (set, clear, flip), strict=True))
    if not any(map(len, named.values())):
        raise ValueError("set, clear, flip: name no latent. Name at least one to change.")
    for (first, ones), (second, others) in combinations(named.items(), 2):
        if twice := sorted({*ones}.intersection(others)):
            raise ValueError(
                f"{first}, {second}: both name {twice}. Name a latent for one operation only."
            )
