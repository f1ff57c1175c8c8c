"""Rows for tables of remedies: a mistake, the remedy that its error names, and the remedy done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Remedy:
    """A mistake, the remedy that its error names, and the code that follows the remedy.

    Attributes:
        mistake: makes the mistake, in an empty folder, and raises the error.
        says: text in the error that names the remedy.
        follow: follows the remedy, in the same folder.
    """

    mistake: Callable[[Path], Any]
    says: str
    follow: Callable[[Path], Any]


def settings(make: Callable[..., Any], says: str, wrong: Any, *right: Any) -> Remedy:
    """A remedy that changes keyword arguments: `wrong` fails, and each of `right` works."""

    def follow(root: Path) -> None:
        for each in right:
            make(**each)

    return Remedy(lambda root: make(**wrong), says, follow)
