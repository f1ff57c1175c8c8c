"""Runs code in a process that has not imported a host yet.

Importing the hosts takes half a minute, nearly all of it for the libraries that they import.
One process imports those libraries once. Each piece of code runs in a fork of that process.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ["torch", "transformer_lens", "datasets", "transformers", "wandb", "plotly.express"]
HOSTS = ("sae_lens", "sparsify", "sae_binary_ext")


@dataclass(frozen=True)
class Outcome:
    exit_code: int | None
    stdout: str
    stderr: str


def run_fresh(code: str, *arguments: str) -> Outcome:
    """Run code as a program of its own, with these command-line arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_run, args=(code, arguments, folder))
        process.start()
        process.join()
        streams = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return Outcome(process.exitcode, *streams)


def _run(code: str, arguments: tuple[str, ...], folder: str) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT), descriptor)
    imported = set(HOSTS) & set(sys.modules)
    assert not imported, f"{imported} imported already"
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<fresh>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
