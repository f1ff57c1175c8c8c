"""`sae-binary index`: writes the tokens on which each latent fires to an index of a text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simple_parsing import ArgumentParser, DashVariant
from typing_extensions import override

from sae_binary_ext.commands.command import Command, imported_late
from sae_binary_ext.commands.index.config import IndexConfig

if TYPE_CHECKING:
    from sae_binary_ext.commands.index.index_folder import IndexFolder
    from sae_binary_ext.commands.index.index_run import run_index

__all__ = ["COMMAND", "IndexConfig", "IndexFolder", "run_index"]


@dataclass(frozen=True)
class IndexCommand(Command):
    """The command takes the index's folder and one coder; its options are IndexConfig's fields."""

    @override
    def run(self, arguments: list[str]) -> Iterator[str]:
        both = DashVariant.UNDERSCORE_AND_DASH
        parser = ArgumentParser(prog=self.program, add_option_string_dash_variants=both)
        parser.add_argument("out", metavar="OUT", type=Path, help="the index's folder")
        parser.add_argument("coder", metavar="CODER", help="folder or Hub id of one coder")
        parser.add_arguments(IndexConfig, dest="settings")
        options = parser.parse_args(arguments)
        from sae_binary_ext.commands.index.index_run import run_index

        yield str(run_index(options.out, options.coder, options.settings))
        yield f"\nIndex: {options.out}"


COMMAND = IndexCommand(
    "index", "an inverted index of a text's codes, for `sae-binary search`", goes_on=True
)
__getattr__ = imported_late(__name__, "index_folder", "index_run")
