"""`sae-binary run`: runs a host's module or a script with the binary coders registered."""

import os
import runpy
import shlex
import sys
from argparse import ArgumentParser
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from sae_binary_ext.commands.command import Command


@dataclass(frozen=True)
class RunCommand(Command):
    """Runs a module or a script, and gives it all further arguments."""

    @override
    def run(self, arguments: list[str]) -> tuple[str, ...]:
        parser = ArgumentParser(
            prog=self.program,
            usage="sae-binary run (-m MODULE | SCRIPT | @FILE) [its arguments ...]",
            description="Runs a module or script with the binary coders registered with its host. "
            "@FILE stands for the arguments in a file, as `sae-binary plan` writes them; # starts "
            "a comment.",
        )
        if arguments[:1] and arguments[0].startswith("@"):
            path = Path(arguments[0][1:])
            if not path.is_file():
                parser.error(f"{path}: no such file. Write one with `sae-binary plan`.")
            written = shlex.split(path.read_text(), comments=True)
            arguments = [*written, *arguments[1:]]
        if arguments[:1] in (["-h"], ["--help"]):
            parser.parse_args(["--help"])
        if arguments in ([], ["-m"]):
            parser.error("give a script, or -m and the name of a module.")
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            with _without_gpu(arguments[1]):
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            # Add the script's folder, as Python does, so that the script can import files from
            # there.
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
        return ()


def _without_gpu(module: str) -> AbstractContextManager[None]:
    """If there is no GPU, the hosts whose command lines ask for CUDA run on the CPU."""
    if module not in ("sparsify", "delphi"):
        return nullcontext()
    import torch

    if torch.cuda.is_available():
        return nullcontext()
    # Set this before the import of sparsify below, because sparsify reads it on import.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sae_binary_ext.sparsify.register import cpu_instead_of_cuda

    return cpu_instead_of_cuda()


COMMAND = RunCommand(
    "run",
    """run a host's module or a script with the binary coders registered:
sae-binary run -m sae_lens.llm_sae_training_runner --architecture binary ...
sae-binary run -m sparsify MODEL DATASET --activation topk_binary ...
sae-binary run -m delphi MODEL CODERS --hookpoints layers.9 ...
sae-binary run script.py ...
sae-binary run @FILE ...""",
    shows_tracebacks=True,
)
