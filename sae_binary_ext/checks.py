"""Checks of values that configs share."""

import math
from collections.abc import Callable, Iterable
from typing import Any


def _check(values: dict[str, Any], accepts: Callable[[Any], bool], remedy: str) -> None:
    for name, value in values.items():
        if not accepts(value):
            raise ValueError(f"{name}={value!r}: {remedy}.")


def check_choice(choices: Iterable[str], **values: object) -> None:
    """Raise ValueError if a named value is not one of the choices."""
    known = list(choices)
    _check(values, lambda value: value in known, f"choose one of {', '.join(known)}")


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError if a named value is below `least`, infinite or NaN."""
    _check(values, lambda value: least <= value < math.inf, f"give a number of at least {least}")


def check_count(**values: int | None) -> None:
    """Raise ValueError if a named value is neither None nor a whole number of at least 0."""
    _check(
        values,
        lambda value: value is None or (value >= 0 and value % 1 == 0),
        "give a number of at least 0, a whole one, or None",
    )


def check_share(**values: float | None) -> None:
    """Raise ValueError if a named value is neither None nor from 0 to 1."""
    _check(values, lambda v: v is None or 0 <= v <= 1, "give a number from 0 to 1, or None")


def check_positive(**values: float) -> None:
    """Raise ValueError if a named value is not positive, infinite or NaN."""
    _check(values, lambda value: 0 < value < math.inf, "give a positive number")


def check_rate(**values: float) -> None:
    """Raise ValueError if a named value is not between 0 and 1, or is exactly 0 or 1."""
    _check(values, lambda value: 0 < value < 1, "give a number between 0 and 1")


def check_layer_norm(normalize_activations: str, d_in: int) -> None:
    """Raise ValueError if layer_norm would divide each token by a standard deviation of 0."""
    if normalize_activations == "layer_norm" and d_in == 1:
        told = f"normalize_activations={normalize_activations!r} with d_in=1"
        raise ValueError(f"{told}: the deviation of one number is 0. Choose another, or none.")


def check_training_dtype(dtype: str) -> None:
    """Raise ValueError for float16, in which Adam's epsilon, 1e-8, is 0 and weights become NaN."""
    if dtype.removeprefix("torch.") in ("float16", "half"):
        raise ValueError(
            f"dtype={dtype!r}: SAELens' optimizer divides by 0 in float16, in stock coders too. "
            'Train in "float32" or "bfloat16". To use float16 then, load the saved coder with '
            'SAE.load_from_disk(path, dtype="float16").'
        )
