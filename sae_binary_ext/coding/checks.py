"""Checks that configs share."""

from collections.abc import Iterable


def check_choice(choices: Iterable[str], **values: object) -> None:
    """Raise ValueError where one of the named values is none of the choices."""
    known = list(choices)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}.")


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError where one of the named values is below that, infinite or no number."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{name}={value!r}: give a number of at least {least}.")


def check_positive(**values: float) -> None:
    """Raise ValueError where one of the named values is not above 0, infinite or no number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r}: give a positive number.")


def check_rate(**values: float) -> None:
    """Raise ValueError where one of the named values is not between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r}: give a number between 0 and 1.")


def check_layer_norm(normalize_activations: str, d_in: int) -> None:
    """Raise ValueError where a token has no deviation to be divided by."""
    if normalize_activations == "layer_norm" and d_in == 1:
        raise ValueError(
            f"normalize_activations={normalize_activations!r} with d_in=1: a single number has no "
            "deviation. Choose another, or none."
        )
