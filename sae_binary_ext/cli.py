"""The command line: parse, call, print."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import sae_binary_ext
from sae_binary_ext.commands.command import Command, find_commands

# The exit status that shells give a command ended by Ctrl-C.
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
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
        first, *more = command.summary.splitlines()
        lines.append(f"  {name:<{width}}{first}")
        lines += [f"  {'':<{width}}{line}" for line in more]
    return "\n".join([*lines, "", "sae-binary COMMAND --help explains a command's options.", ""])


@contextmanager
def _told_plainly(command: Command) -> Generator[None]:
    """Print one line, not a traceback, for a mistake, a missing package and Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        goes_on = "; the same command goes on" * command.goes_on
        print(f"{command.program}: stopped{goes_on}.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from interrupt
    except (ValueError, ImportError) as error:
        # Python names the module it did not find; this package's own errors say what to install.
        if isinstance(error, ImportError) and error.name is not None:
            raise
        print(f"{command.program}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
