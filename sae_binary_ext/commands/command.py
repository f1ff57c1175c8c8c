"""What a command of sae-binary is. Each room of commands/ exports one as COMMAND."""

from abc import ABC, abstractmethod
from argparse import ArgumentParser as StandardParser
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from simple_parsing import ArgumentParser, DashVariant
from typing_extensions import override

CODERS_HELP = (
    "folders of coders, folders of such folders, or Hub ids of either: autoencoders, or "
    "transcoders, of one model, at one or several hooks"
)


@dataclass(frozen=True)
class Command(ABC):
    """A command: parse its arguments, do it, and say what to print.

    Attributes:
        name: as users type it.
        summary: for the list of commands, a line or more.
        goes_on: after an interruption the same command goes on where it was.
        shows_tracebacks: its errors are those of somebody else's code.
    """

    name: str
    summary: str
    goes_on: bool = False
    shows_tracebacks: bool = False

    @property
    def program(self) -> str:
        """Its name in its help and its errors."""
        return f"sae-binary {self.name}"

    @abstractmethod
    def run(self, arguments: list[str]) -> Iterable[str]:
        """Do it; returns what to print, a line or a block each."""


@dataclass(frozen=True)
class MeasuringCommand(Command):
    """A command with a dataclass of settings, whose modules are imported when they are needed.

    Attributes:
        room: its folder in commands/.
        settings: class of config.py. It imports no host, so that help is there at once.
        does: function of NAME_run.py: (settings) or (coders, settings) to what is printed.
        takes_coders: whether coders are its arguments.
        result: the file below settings.output that is named at the end.
        result_label: what that file is.
    """

    room: str = ""
    settings: str = ""
    does: str = ""
    takes_coders: bool = True
    result: str = ""
    result_label: str = "Report"

    @override
    def run(self, arguments: list[str]) -> Iterator[str]:
        parser = ArgumentParser(
            prog=self.program, add_option_string_dash_variants=DashVariant.UNDERSCORE_AND_DASH
        )
        if self.takes_coders:
            parser.add_argument("coders", metavar="CODER", nargs="+", help=CODERS_HELP)
        parser.add_arguments(getattr(self._module("config"), self.settings), dest="settings")
        options = parser.parse_args(arguments)
        function: Callable[..., Any] = getattr(self._module(f"{self.room}_run"), self.does)
        given = (options.coders,) if self.takes_coders else ()
        yield str(function(*given, options.settings))
        result = self.result or f"{self.name}.html"
        yield f"\n{self.result_label}: {options.settings.output / result}"

    def _module(self, name: str) -> Any:
        return import_module(f"sae_binary_ext.commands.{self.room}.{name}")


@dataclass(frozen=True)
class FileCommand(Command):
    """A command on files of coders, with a few arguments.

    Attributes:
        description: for its help.
        add_arguments: adds them to a parser.
        does: with the parsed arguments; yields what is printed.
    """

    description: str = ""
    add_arguments: Callable[[StandardParser], None] = lambda parser: None
    does: Callable[[Namespace], Iterable[str]] = lambda options: ()

    @override
    def run(self, arguments: list[str]) -> Iterable[str]:
        parser = StandardParser(prog=self.program, description=self.description)
        self.add_arguments(parser)
        return self.does(parser.parse_args(arguments))


def add_option(parser: StandardParser, name: str, **settings: Any) -> None:
    """An option that takes dashes and underscores: --training_tokens, --training-tokens."""
    parser.add_argument(*dict.fromkeys((name, name[:2] + name[2:].replace("_", "-"))), **settings)


def add_source(parser: StandardParser) -> None:
    """The argument and the option that name coders."""
    parser.add_argument("source", help="folder of a coder or of several, or a Hub id (user/name)")
    parser.add_argument(
        "--hookpoint", help="the coder's folder in the source, or where the source's one belongs"
    )


def find_commands() -> dict[str, Command]:
    """The command of each room of commands/, by name."""
    rooms = import_module("sae_binary_ext.commands")
    found: dict[str, Command] = {}
    for module in iter_modules(rooms.__path__):
        if module.ispkg:
            command = import_module(f"{rooms.__name__}.{module.name}").COMMAND
            found[command.name] = command
    return dict(sorted(found.items()))
