"""Packages that only some judges need."""

import importlib
from typing import Any


def imported(name: str) -> Any:
    """A module of delphi or of what comes with it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is not installed. For scores beyond the token baseline: pip install "
            "'sae_binary_ext[delphi]', in an environment of its own, for it brings vllm."
        ) from error
