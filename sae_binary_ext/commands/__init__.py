"""The commands, one package each. A package imports torch only when one of its names is used."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def rooms() -> list[Any]:
    """The packages in commands/, one for each command."""
    found = (module.name for module in iter_modules(__path__) if module.ispkg)
    return [import_module(f"{__name__}.{name}") for name in found]


def __getattr__(name: str) -> Any:
    """A public name of one of the commands' packages: run_compare, CompareConfig, and so on."""
    if not name.startswith("_"):
        for room in rooms():
            if name in getattr(room, "__all__", ()) and name != "COMMAND":
                return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
