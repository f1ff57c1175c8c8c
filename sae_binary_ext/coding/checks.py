"""Checks that configs of several coders share."""


def check_at_least_zero(**values: float) -> None:
    """Raise ValueError where one of the named values is negative, infinite or no number."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value!r}: give a number of at least 0.")


def check_rate(**values: float) -> None:
    """Raise ValueError where one of the named values is not between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r}: give a number between 0 and 1.")
