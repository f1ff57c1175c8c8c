"""Says what coders are, and checks their files."""

from argparse import Namespace
from collections.abc import Iterator


def inspect(options: Namespace) -> Iterator[str]:
    """Each coder's name, and a line for each of its facts."""
    from sae_binary_ext import checkpoints

    for description in checkpoints.describe(options.source, options.hookpoint):
        yield description.name
        for label, value in description.lines():
            yield f"  {label:<22} {value}"
