"""Writes coders down in another format."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import add_source


def add_arguments(parser: ArgumentParser) -> None:
    """Source, target and format."""
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder of the new coder, or of several ones'")
    parser.add_argument("--host", default="saelens", help="saelens, sparsify, cho2025, quirke2025")


def convert(options: Namespace) -> Iterator[str]:
    """The folders written."""
    from sae_binary_ext import checkpoints

    written = checkpoints.convert(options.source, options.out, options.host, options.hookpoint)
    yield from map(str, written)
