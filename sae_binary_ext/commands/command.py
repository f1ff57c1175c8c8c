"""Classes of sae-binary's commands. Each package in commands/ exports one command, COMMAND."""

import sys
from abc import ABC, abstractmethod
from argparse import ArgumentParser as StandardParser
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from simple_parsing import ArgumentParser, DashVariant
from typing_extensions import override

from sae_binary_ext.commands import rooms

CODERS_HELP = (
    "coders to read: a coder's folder, a folder of such folders, a Hub id of either, a Hub id with "
    "a coder's path (user/repo/layers.9), or a release and an id of SAELens "
    "(gpt2-small-res-jb/blocks.8.hook_resid_pre). All must be autoencoders or all transcoders, of "
    "one model; their hooks may differ"
)


@dataclass(frozen=True)
class Command(ABC):
    """A command parses its arguments, does its work, and returns the text to print.

    Attributes:
        summary: one or more lines for the list of commands.
        goes_on: whether the same command continues an interrupted run.
        shows_tracebacks: whether to show tracebacks, because errors come from other people's code.
    """

    name: str
    summary: str
    goes_on: bool = False
    shows_tracebacks: bool = False

    @property
    def program(self) -> str:
        """The command's name in its help and its errors."""
        return f"sae-binary {self.name}"

    @abstractmethod
    def run(self, arguments: list[str]) -> Iterable[str]:
        """Do the work; return the lines or blocks to print."""


@dataclass(frozen=True, kw_only=True)
class MeasuringCommand(Command):
    """A command whose options are the fields of a dataclass.

    The package NAME of the settings' class has a function run_NAME, which takes the coders (if the
    command has any) and the settings. The function is imported after the arguments are parsed.

    Attributes:
        settings: dataclass in config.py, which imports no host, so that --help is quick.
        takes_coders, coders_help: whether it takes coders, and what its help says about them.
        result, result_label: file in settings.output to print at the end (NAME.html if empty), and
            the label to print with it.
    """

    settings: type[Any]
    takes_coders: bool = True
    coders_help: str = CODERS_HELP
    result: str = ""
    result_label: str = "Report"

    @override
    def run(self, arguments: list[str]) -> Iterator[str]:
        both = DashVariant.UNDERSCORE_AND_DASH
        parser = ArgumentParser(prog=self.program, add_option_string_dash_variants=both)
        if self.takes_coders:
            parser.add_argument("coders", metavar="CODER", nargs="+", help=self.coders_help)
        parser.add_arguments(self.settings, dest="settings")
        options = parser.parse_args(arguments)
        room = self.settings.__module__.rpartition(".")[0]
        run_room = getattr(import_module(room), f"run_{room.rpartition('.')[2]}")
        given = (options.coders,) if self.takes_coders else ()
        yield str(run_room(*given, options.settings))
        result = options.settings.output / (self.result or f"{self.name}.html")
        yield f"\n{self.result_label}: {result}"


@dataclass(frozen=True, kw_only=True)
class FileCommand(Command):
    """A command on the files of coders; its --help begins with the description.

    `add_arguments` adds its arguments to a parser. `does` takes the parsed arguments, does the work
    and yields the text to print.
    """

    description: str
    add_arguments: Callable[[StandardParser], None]
    does: Callable[[Namespace], Iterable[str]]

    @override
    def run(self, arguments: list[str]) -> Iterable[str]:
        parser = StandardParser(prog=self.program, description=self.description)
        self.add_arguments(parser)
        return self.does(parser.parse_args(arguments))


def imported_late(room: str, *homes: str) -> Callable[[str], Any]:
    """Make a package's __getattr__, which imports a name on first use, because torch takes seconds.

    The package's __all__ has the public names. `homes` are its modules that define them.
    """

    def find(name: str) -> Any:
        for home in homes if name in sys.modules[room].__all__ else ():
            module = import_module(f"{room}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return find


def add_option(parser: StandardParser, name: str, **settings: Any) -> None:
    """Add an option that may be written with dashes or underscores, as --training-tokens."""
    parser.add_argument(*dict.fromkeys((name, name[:2] + name[2:].replace("_", "-"))), **settings)


def add_source(parser: StandardParser) -> None:
    """Add the arguments that name coders: `source` and `--hookpoint`."""
    source_help = "a coder's folder, a folder of them, or a Hub id (user/name or user/name/folder)"
    parser.add_argument("source", help=source_help)
    parser.add_argument(
        "--hookpoint",
        help="the coder's folder inside the source; or, if the source is one coder whose files "
        "name no hook, the hook it was trained at",
    )


def add_reading(parser: StandardParser, tokens: int) -> None:
    """Add the options that say how to read a text; `tokens` is the default of --tokens."""
    parser.add_argument("--model", help="Hub id or folder; if left out, that of the coder's files")
    tokens_help = "tokens to read (default: %(default)s)"
    parser.add_argument("--tokens", type=int, default=tokens, help=tokens_help)
    parser.add_argument("--split", help="split of the dataset (default: train)")
    add_option(parser, "--text_column", help="column of the texts (default: text)")


def find_commands() -> dict[str, Command]:
    """The command of each package in commands/, by name."""
    found: list[Command] = [room.COMMAND for room in rooms()]
    return {command.name: command for command in sorted(found, key=lambda each: each.name)}
