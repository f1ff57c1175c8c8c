"""Rows of the tables of remedies: a mistake, what its error says to do, and that done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Remedy:
    """A mistake, what its error says to do, and that done.

    Attributes:
        mistake: raises; given an empty folder.
        says: what the error tells.
        follow: does that; given the same folder.
    """

    mistake: Callable[[Path], Any]
    says: str
    follow: Callable[[Path], Any]


def settings(make: Callable[..., Any], says: str, wrong: Any, *right: Any) -> Remedy:
    """Of keyword arguments that the error tells to change."""

    def follow(root: Path) -> None:
        for each in right:
            make(**each)

    return Remedy(lambda root: make(**wrong), says, follow)
