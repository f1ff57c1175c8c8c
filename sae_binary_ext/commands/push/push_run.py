"""Publishes coders on the Hub."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import add_option


def add_arguments(parser: ArgumentParser) -> None:
    """What to publish where, and what the card says."""
    parser.add_argument("path", type=Path, help="folder of a coder, or of several ones'")
    parser.add_argument("repo_id", help="user/name; made if it does not exist")
    parser.add_argument("--model", help="the model's Hub id, where the coder's files name a folder")
    parser.add_argument("--licence", help="as the Hub names it: mit, apache-2.0")
    parser.add_argument("--dataset", help="what the coders were trained on")
    add_option(parser, "--training_tokens", help="on how many tokens")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    add_option(parser, "--dry_run", action="store_true", help="show it and upload nothing")


def push(options: Namespace) -> Iterator[str]:
    """The files uploaded, and in a dry run the cards."""
    from sae_binary_ext import checkpoints

    given = vars(options)
    upload = checkpoints.push(given.pop("path"), given.pop("repo_id"), **given)
    for name, size in upload.files.items():
        yield f"{size:>14,} bytes  {upload.repo_id}/{name}"
    if options.dry_run:
        for name, card in upload.cards.items():
            yield f"\n--- {name} ---\n{card}"
