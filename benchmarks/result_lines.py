"""Results of a benchmark, one line of JSON each, so that an interrupted benchmark goes on."""

import functools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

Line = dict[str, Any]
Run = TypeVar("Run")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ResultsFile:
    """A file of results."""

    path: Path

    def read(self) -> list[Line]:
        """All results measured so far."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines]

    def append(self, line: Line) -> None:
        """Append one result."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def make(
        self,
        make: Callable[[Run], Line],
        runs: Sequence[Run],
        description: str,
        jobs: int | None,
        prepare: Callable[[], None],
    ) -> None:
        """Make runs, several at once, and append a line for each as it comes.

        Args:
            make: makes one run, in a process of its own.
            runs: the runs.
            description: what the progress bar says.
            jobs: runs made at once; None for as many as there are cores.
            prepare: is called once in each process, before its first run.

        Raises ValueError if `make` is a function of a package's __main__.
        """
        for line in made(make, runs, description, jobs, prepare):
            self.append(line)


def made(
    make: Callable[[Run], Made],
    runs: Sequence[Run],
    description: str,
    jobs: int | None,
    prepare: Callable[[], None],
) -> Iterator[Made]:
    """What `make` returns for each run, as it comes; arguments as in ResultsFile.make."""
    if not runs:
        return
    _check_importable(make)
    # Processes are spawned, because a fork of a process with threads may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(jobs, initializer=prepare) as pool:
        yield from tqdm(pool.imap_unordered(make, runs), description, len(runs))


def _check_importable(make: Callable[..., Any]) -> None:
    """Raise ValueError if a spawned process has no way to import a function.

    Such a process does not import the __main__ of a package again. Its pool would start new
    processes for ever.
    """
    function = make.func if isinstance(make, functools.partial) else make
    specification = sys.modules["__main__"].__spec__
    main = specification.name if specification else ""
    if main.endswith(".__main__") and function.__module__ == "__main__":
        raise ValueError(
            f"make: {function.__name__} is a function of {main}, which other processes cannot "
            "import. Move it to another module of the package."
        )
