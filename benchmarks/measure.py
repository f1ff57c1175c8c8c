"""Measures times in turns, as medians of ratios, and peak memory in a process of its own."""

import argparse
import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

# A runner takes a number of runs and returns the seconds of each run.
Runner = Callable[[int], list[float]]
# Type of a function that makes a runner. Another process must be able to import that function.
MakeRunner = Callable[..., Runner]

ROUNDS, REPEATS = 3, 3


def asks_for_all() -> bool:
    """Whether the command line has --full, for every row of the tables of steps and paths."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="every row, in three times the time")
    return parser.parse_args().full


@dataclass(frozen=True)
class Compared:
    """Times of our code beside those of the code it is compared with.

    Attributes:
        ours: median seconds.
        theirs: median seconds.
        ratio: median over rounds of ours / theirs.
    """

    ours: float
    theirs: float
    ratio: float

    def cells(self) -> tuple[str, str, str]:
        """Table cells: our seconds, their seconds, and the ratio."""
        return f"{self.ours:.3f}", f"{self.theirs:.3f}", f"**{self.ratio:.2f}**"


def compare(ours: Runner, theirs: Runner) -> Compared:
    """Run two runners in turns, so that a slow phase of the machine affects both.

    The first round warms up and is not counted.
    """
    rounds = [
        (statistics.median(ours(REPEATS)), statistics.median(theirs(REPEATS)))
        for _ in range(ROUNDS + 1)
    ][1:]
    return Compared(
        statistics.median(mine for mine, _ in rounds),
        statistics.median(other for _, other in rounds),
        statistics.median(mine / other for mine, other in rounds),
    )


def now(device: str = "cpu") -> float:
    """The time in seconds, after the device has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeat(run: Callable[[], object], device: str = "cpu") -> Runner:
    """Make a runner that calls a function."""

    def runner(times: int) -> list[float]:
        seconds: list[float] = []
        for _ in range(times):
            started = now(device)
            run()
            seconds.append(now(device) - started)
        return seconds

    return runner


def median_seconds(runner: Runner) -> float:
    """Median seconds of one runner alone, after one run to warm up."""
    runner(1)
    return statistics.median(runner(REPEATS * ROUNDS))


def peak_mebibytes(make: MakeRunner, *arguments: object) -> float:
    """Peak of memory during two runs, less the memory in use before them, in MiB.

    Args:
        make: makes the runner in another process, with its weights and data.
        arguments: arguments of make.
    """
    return alone(make, *arguments, runs=2)[1]


def alone(make: MakeRunner, *arguments: object, runs: int) -> tuple[list[float], float]:
    """Seconds of each run in a process of its own, and the peak that peak_mebibytes describes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.hosts"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_alone, args=(sender, make, arguments, runs))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure_alone(
    sender: object, make: MakeRunner, arguments: tuple[object, ...], runs: int
) -> None:
    run = make(*arguments)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the memory now in use
    before = status("VmRSS")
    seconds = run(runs)
    sender.send((seconds, (status("VmHWM") - before) / 1024))  # pyright: ignore


def status(field: str) -> int:
    """Value of a field in this process's /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(f"{field}: /proc/self/status has no such field. Run this on Linux.")


@dataclass(frozen=True)
class Ceilings:
    """Times that no training step can go below.

    Attributes:
        product: seconds of the encoder's matrix product alone, into existing memory.
        copy: seconds to read and write once an array as large as the pre-activations.
    """

    product: float
    copy: float


def ceilings(tokens: int, width: int, latents: int) -> Ceilings:
    """Measure on this machine how fast a training step can be at best."""
    x, weight = torch.randn(tokens, width), torch.randn(width, latents)
    out, other = torch.empty(tokens, latents), torch.zeros(tokens, latents)
    return Ceilings(
        median_seconds(repeat(lambda: torch.mm(x, weight, out=out))),
        median_seconds(repeat(lambda: other.copy_(out))),
    )


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown, row by row."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns), flush=True)
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def machine() -> str:
    """Name of the processor and version of torch, for the heading of a table."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    extensions = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {torch.get_num_threads()} cores, {extensions}, torch {torch.__version__}"
