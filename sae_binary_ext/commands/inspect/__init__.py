"""`sae-binary inspect`: describes the coders in a folder or a repository."""

from argparse import Namespace
from collections.abc import Iterator

from sae_binary_ext.commands.command import FileCommand, add_source


def _inspect(options: Namespace) -> Iterator[str]:
    """Describe the coders; yields each coder's name, and a line for each fact about it."""
    from sae_binary_ext import checkpoints

    for description in checkpoints.describe(options.source, options.hookpoint):
        yield description.name
        yield from (f"  {label:<22} {value}" for label, value in description.lines())


COMMAND = FileCommand(
    "inspect",
    "what a folder or a Hub repository of coders holds",
    description="Describes coders and checks their files.",
    add_arguments=add_source,
    does=_inspect,
)
