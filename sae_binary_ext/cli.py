"""The command line: parse, call, print."""

import logging
import os
import runpy
import sys
from argparse import ArgumentParser as StandardParser
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from simple_parsing import ArgumentParser

import sae_binary_ext

USAGE = """usage: sae-binary COMMAND ...

commands:
  demo   train binary and stock coders on SmolLM2 and compare them
  run    run a host's module or a script with the binary coders registered:
           sae-binary run -m sae_lens.llm_sae_training_runner --architecture binary ...
           sae-binary run -m sparsify MODEL DATASET --activation topk_binary ...
           sae-binary run script.py ...

sae-binary COMMAND --help explains a command's options.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in COMMANDS:
        return COMMANDS[command](rest)
    if command == "--version":
        print(sae_binary_ext.__version__)
        return 0
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    print(f"sae-binary: no command {command!r}; choose from {sorted(COMMANDS)}.", file=sys.stderr)
    return 2


def demo(arguments: list[str]) -> int:
    """Train and compare the demo's coders."""
    from sae_binary_ext.demo.config import DemoConfig

    parser = ArgumentParser(prog="sae-binary demo")
    parser.add_arguments(DemoConfig, dest="config")
    try:
        config = parser.parse_args(arguments).config
    except ValueError as error:
        parser.error(str(error))

    from sae_binary_ext.demo.pipeline import run_demo

    print(run_demo(config))
    print(f"\nReport: {config.output / 'report.html'}")
    return 0


def run(arguments: list[str]) -> int:
    """Run a module or a script as its own command, the binary coders registered."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        parser = StandardParser(
            prog="sae-binary run",
            usage="sae-binary run (-m MODULE | SCRIPT) [its arguments ...]",
            description="Runs a module or script with the binary coders registered with its host.",
        )
        parser.print_help()
        return 0 if arguments else 2
    if arguments[0] == "-m":
        if len(arguments) < 2:
            print("sae-binary run: -m needs the name of a module.", file=sys.stderr)
            return 2
        _, module, *rest = arguments
        sys.argv = [module, *rest]
        with _without_gpu(module):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        script, *rest = arguments
        sys.argv = [script, *rest]
        # As python itself does, so that a script finds its neighbours.
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
    return 0


def _without_gpu(module: str) -> AbstractContextManager[None]:
    """sparsify's command line asks for CUDA; where there is none it runs on the CPU."""
    if module != "sparsify":
        return nullcontext()
    import torch

    if torch.cuda.is_available():
        return nullcontext()
    # sparsify reads it when it is imported, which the next line does.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sae_binary_ext.sparsify.register import cpu_instead_of_cuda

    return cpu_instead_of_cuda()


COMMANDS = {"demo": demo, "run": run}
