"""`sae-binary convert`: writes coders in another format."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import FileCommand, add_option, add_reading, add_source


def _add_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder for the new coder, or for several coders")
    hosts = "saelens, sparsify, cho2025, quirke2025; stock: SAELens without this package"
    parser.add_argument("--host", default="saelens", help=hosts)
    parser.add_argument("--architecture", help="of a stock coder: gated, jumprelu or topk")
    parser.add_argument("--dataset", help="texts (default: the bundled Wikipedia sample)")
    add_reading(parser, tokens=100_000)
    add_option(parser, "--context_size", type=int, default=256, help="tokens per row")
    parser.add_argument("--device", default="auto", help="device of model and coders, as cuda:0")


def _convert(options: Namespace) -> Iterator[str]:
    """Convert the coders; yields the folders that are written."""
    from sae_binary_ext import checkpoints

    given = vars(options)
    host, architecture = given.pop("host"), given.pop("architecture")
    source, out, hookpoint = (given.pop(name) for name in ("source", "out", "hookpoint"))
    if host == "stock":
        from sae_binary_ext import measure
        from sae_binary_ext.settings import ReadingConfig

        text = ReadingConfig(**given)
        yield from map(str, measure.export_stock(source, out, text, architecture, hookpoint))
    else:
        written = checkpoints.convert(source, out, host, hookpoint, architecture)
        yield from map(str, written)


COMMAND = FileCommand(
    "convert",
    "write coders in another format (saelens, sparsify, cho2025, quirke2025, stock)",
    description="Writes coders in another format. For --host stock, text is read if codes may "
    "differ: to count how many do, and to fit thresholds. Other formats use no text.",
    add_arguments=_add_arguments,
    does=_convert,
)
