"""`sae-binary push`: publishes coders on the Hub."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import FileCommand, add_option


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of a coder, or of several coders")
    parser.add_argument("repo_id", help="user/name; made if it does not exist")
    parser.add_argument("--model", help="the model's Hub id, if the coder's files name a folder")
    parser.add_argument("--licence", help="as the Hub names it: mit, apache-2.0")
    parser.add_argument("--dataset", help="the text that the coders were trained on")
    add_option(parser, "--training_tokens", help="how many tokens they were trained on")
    host_help = "stock: also publish the form that SAELens loads without this package"
    parser.add_argument("--host", choices=["stock"], help=host_help)
    parser.add_argument("--private", action="store_true", help="make the repository private")
    add_option(parser, "--dry_run", action="store_true", help="show it and upload nothing")


def _push(options: Namespace) -> Iterator[str]:
    """Upload coders; yields the uploaded files, and in a dry run the model cards."""
    from sae_binary_ext import checkpoints

    given = vars(options)
    upload = checkpoints.push(given.pop("path"), given.pop("repo_id"), **given)
    for name, size in upload.files.items():
        yield f"{size:>14,} bytes  {upload.repo_id}/{name}"
    if options.dry_run:
        yield from (f"\n--- {name} ---\n{card}" for name, card in upload.cards.items())


COMMAND = FileCommand(
    "push",
    "publish coders on the Hub, with a model card",
    goes_on=True,
    description="Publishes a coder, or a folder of coders, each with a model card. Run again "
    "after an interruption, it goes on. Log in first: hf auth login, or HF_TOKEN.",
    add_arguments=_add_arguments,
    does=_push,
)
