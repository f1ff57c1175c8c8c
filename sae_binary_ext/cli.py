"""The command line: it parses arguments, runs a command and prints its output."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from itertools import zip_longest

import sae_binary_ext
from sae_binary_ext.commands.command import Command, find_commands


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["--help"]
    if name == "--version":
        print(sae_binary_ext.__version__)
        return 0
    commands = find_commands()
    if name in ("-h", "--help"):
        print(_usage(commands), end="")
        return 0
    if name not in commands:
        choices = ", ".join(commands)
        print(f"sae-binary: no command {name!r}; choose one of {choices}.", file=sys.stderr)
        return 2
    command = commands[name]
    with nullcontext() if command.shows_tracebacks else _told_plainly(command):
        for block in command.run(rest):
            print(block)
    return 0


def _usage(commands: dict[str, Command]) -> str:
    width = max(map(len, commands)) + 2
    lines = ["usage: sae-binary COMMAND ...", "", "commands:"]
    for name, command in commands.items():
        for label, line in zip_longest([name], command.summary.splitlines(), fillvalue=""):
            lines.append(f"  {label:<{width}}{line}")
    return "\n".join([*lines, "", "sae-binary COMMAND --help explains a command's options.", ""])


@contextmanager
def _told_plainly(command: Command) -> Generator[None]:
    """Print one line instead of a traceback for a mistake, a missing package or Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        goes_on = "; the same command goes on" * command.goes_on
        print(f"{command.program}: stopped{goes_on}.", file=sys.stderr)
        raise SystemExit(130) from interrupt  # shells use this exit status for Ctrl-C
    except (ValueError, ImportError) as error:
        # ImportErrors of Python name a module, and those of this package say what to install.
        if isinstance(error, ImportError) and error.name is not None:
            raise
        print(f"{command.program}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
