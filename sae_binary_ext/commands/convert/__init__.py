"""`sae-binary convert`: writes coders in another format."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import FileCommand, add_source


def _add_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder for the new coder, or for several coders")
    parser.add_argument("--host", default="saelens", help="saelens, sparsify, cho2025, quirke2025")


def _convert(options: Namespace) -> Iterator[str]:
    """Convert the coders; yields the folders that are written."""
    from sae_binary_ext import checkpoints

    written = checkpoints.convert(options.source, options.out, options.host, options.hookpoint)
    yield from map(str, written)


COMMAND = FileCommand(
    "convert",
    "write coders in another format (saelens, sparsify, cho2025, quirke2025)",
    description="Writes coders in another format.",
    add_arguments=_add_arguments,
    does=_convert,
)
