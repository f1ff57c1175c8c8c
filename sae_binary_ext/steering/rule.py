"""Rules over latents of one token, such as `1203 & !7`: 1203 fires and 7 is silent."""

import re
from dataclasses import dataclass

from torch import Tensor

_LATENT = re.compile(r"\s*(?P<silent>!?)\s*(?P<latent>\d+)\s*")


@dataclass(frozen=True)
class Rule:
    """A condition on a token's code: all of `fires` are active, and all of `silent` are not."""

    fires: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()

    def holds(self, codes: Tensor) -> Tensor:
        """bool [...]: the tokens whose codes [..., latents] fulfil the rule."""
        active = codes != 0
        fires, silent = list(self.fires), list(self.silent)
        return active[..., fires].all(-1) & ~active[..., silent].any(-1)

    def check(self, latents: int) -> None:
        """Raise ValueError if a coder of so many latents lacks one of the rule's latents."""
        check_latents((*self.fires, *self.silent), latents, "where")


def parse_rule(text: str) -> Rule:
    """Read a rule: latents joined by &, each with ! before it if it must be silent.

    ValueError if the text is no such rule, or if no token can fulfil it.
    """
    found = [_LATENT.fullmatch(part) for part in text.split("&")]
    terms = [(int(each["latent"]), bool(each["silent"])) for each in found if each is not None]
    if len(terms) < len(found):
        wrong = [part for part, each in zip(text.split("&"), found, strict=True) if each is None]
        raise ValueError(
            f"where={text!r}: cannot read {wrong[0].strip()!r}. Give numbers of latents joined by "
            "&, with ! before a latent that must be silent, as in '1203 & !7'."
        )
    fires, silent = ({latent for latent, no in terms if no == wanted} for wanted in (False, True))
    if both := sorted(fires & silent):
        raise ValueError(
            f"where={text!r}: no token fulfils it, because {both} must be active and silent. Name "
            "each latent once."
        )
    return Rule(tuple(sorted(fires)), tuple(sorted(silent)))


def check_latents(given: tuple[int, ...], latents: int, name: str) -> None:
    """Raise ValueError if one of the given numbers is no latent of a coder of so many latents."""
    if wrong := sorted({latent for latent in given if not 0 <= latent < latents}):
        raise ValueError(
            f"{name}={wrong}: the coder has {latents} latents. Give numbers from 0 to "
            f"{latents - 1}."
        )
