"""Runs a module or a script as its own command, the binary coders registered."""

import os
import runpy
import sys
from argparse import ArgumentParser
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from sae_binary_ext.commands.command import Command


@dataclass(frozen=True)
class RunCommand(Command):
    """Hands all that follows to the module or the script."""

    @override
    def run(self, arguments: list[str]) -> tuple[str, ...]:
        parser = ArgumentParser(
            prog=self.program,
            usage="sae-binary run (-m MODULE | SCRIPT) [its arguments ...]",
            description="Runs a module or script with the binary coders registered with its host.",
        )
        if arguments[:1] in (["-h"], ["--help"]):
            parser.parse_args(["--help"])
        if not arguments:
            parser.error("name a module (-m MODULE) or a script.")
        if arguments[0] == "-m":
            if len(arguments) < 2:
                parser.error("-m needs the name of a module.")
            _run_module(arguments[1], arguments[2:])
        else:
            _run_script(arguments[0], arguments[1:])
        return ()


def _run_module(module: str, rest: list[str]) -> None:
    sys.argv = [module, *rest]
    with _without_gpu(module):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_script(script: str, rest: list[str]) -> None:
    sys.argv = [script, *rest]
    # As python itself does, so that a script finds its neighbours.
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")


def _without_gpu(module: str) -> AbstractContextManager[None]:
    """Where there is no GPU, the hosts whose command lines ask for CUDA run on the CPU."""
    if module not in ("sparsify", "delphi"):
        return nullcontext()
    import torch

    if torch.cuda.is_available():
        return nullcontext()
    # sparsify reads it when it is imported, which the next line does.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sae_binary_ext.sparsify.register import cpu_instead_of_cuda

    return cpu_instead_of_cuda()
