"""Checks that configs share."""

from collections.abc import Iterable


def check_choice(choices: Iterable[str], **values: object) -> None:
    """Raise ValueError if a named value is not one of the choices."""
    known = list(choices)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}.")


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError if a named value is below the least one, infinite or NaN."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{name}={value!r}: give a number of at least {least}.")


def check_positive(**values: float) -> None:
    """Raise ValueError if a named value is not positive, infinite or NaN."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r}: give a positive number.")


def check_rate(**values: float) -> None:
    """Raise ValueError if a named value is not between 0 and 1; both ends are refused."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r}: give a number between 0 and 1.")


def check_layer_norm(normalize_activations: str, d_in: int) -> None:
    """Raise ValueError if layer_norm would divide a token by a deviation of 0."""
    if normalize_activations == "layer_norm" and d_in == 1:
        raise ValueError(
            f"normalize_activations={normalize_activations!r} with d_in=1: a single number has no "
            "deviation. Choose another, or none."
        )


def check_training_dtype(dtype: str) -> None:
    """Raise ValueError if Adam would turn weights into NaN: its epsilon, 1e-8, is 0 in float16."""
    if dtype.removeprefix("torch.") in ("float16", "half"):
        raise ValueError(
            f"dtype={dtype!r}: SAELens' optimizer divides by 0 in float16, in stock coders too. "
            'Train in "float32" or "bfloat16". The saved coder can be loaded in float16, with '
            'SAE.load_from_disk(path, dtype="float16").'
        )
