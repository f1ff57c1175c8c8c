"""`sae-binary refit`: replace a binary coder's decoder by the one of least squared error."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import add_option, add_source


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments: coder, output folder and text."""
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder of the refitted coder, in the same format")
    parser.add_argument("--dataset", required=True, help="texts: a Hub id, a file or a folder")
    parser.add_argument(
        "--model", help="Hub id or folder; by default the model that the coder's files name"
    )
    parser.add_argument(
        "--tokens", type=int, default=300_000, help="tokens to fit on (default: %(default)s)"
    )
    add_option(
        parser, "--context_size", type=int, help="tokens per row; by default the coder's, or 256"
    )
    parser.add_argument("--split", help="split of the dataset (default: train)")
    add_option(parser, "--text_column", help="column of the texts (default: text)")


def refit(options: Namespace) -> Iterator[str]:
    """Refit; yields the error before and after, and the new folder."""
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
