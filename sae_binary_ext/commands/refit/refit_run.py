"""Refits a binary coder's decoder."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import add_option, add_source


def add_arguments(parser: ArgumentParser) -> None:
    """Coder, target and text."""
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder of the refitted coder, in the same format")
    parser.add_argument("--dataset", required=True, help="texts: a Hub id, a file or a folder")
    parser.add_argument("--model", help="Hub id or folder; the one that the coder's files name")
    parser.add_argument("--tokens", type=int, default=300_000, help="to fit on (%(default)s)")
    add_option(parser, "--context_size", type=int, help="tokens a row; the coder's own, or 256")
    parser.add_argument("--split", help="of the dataset; train")
    add_option(parser, "--text_column", help="column of the texts; text")


def refit(options: Namespace) -> Iterator[str]:
    """The error before and after, and the new folder."""
    from sae_binary_ext import measure

    text = measure.Text(
        options.dataset,
        options.model,
        options.tokens,
        options.context_size,
        options.split,
        options.text_column,
    )
    done = measure.refit(options.source, options.out, text, options.hookpoint)
    yield (
        f"FVU {done.fvu_before:.4f} -> {done.fvu_after:.4f} on {done.measured_tokens} tokens "
        f"after the {done.fitted_tokens} fitted on"
    )
    yield str(options.out)
