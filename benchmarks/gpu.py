"""Measure kernels and training steps on a GPU, and say which entry of PATHS they ask for.

Usage: python -m benchmarks.gpu

The command takes at most 8 minutes. Results of the Triton kernels are compared with results in
float64, and their times with torch's. The hosts' training steps are measured with each setting that
makes them fast, and in index form beside the dense form. At the end, the command prints the entry
of "cuda" for PATHS in coding/kernels/processor.py. Without a GPU, run

    TRITON_INTERPRET=1 python -m benchmarks.gpu

This command runs the same steps at one small size. It shows that all steps run; its times, and so
its verdict, mean nothing.
"""

import time
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import torch

from benchmarks.hosts import WIDTH, Settings
from benchmarks.kernels import COLUMNS, Measured, measure_kernels
from benchmarks.measure import Compared, Runner, compare, median_seconds, print_table, repeat
from benchmarks.steps import (
    SAELENS,
    SPARSIFY,
    Pair,
    Trainer,
    entropy_pair,
    saelens_pair,
    sparsify_pair,
)
from benchmarks.verdict import NEVER, FormTime, verdict
from sae_binary_ext.coding.kernels.processor import PATHS, Paths

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Seconds after which no further row is measured. A row takes less than a minute.
LIMIT = 420
# Number of latents, tokens a step, and k.
SIZES = (
    ((4608, 4096, 32), (4608, 4096, 128), (36_864, 4096, 32), (36_864, 4096, 128))
    if DEVICE == "cuda"
    else ((96, 64, 4),)
)
# The same, for steps in index form beside the dense form. Twice as many latents as k learn.
FORM_SIZES = (
    ((36_864, 4096, 32), (4608, 4096, 32), (4608, 4096, 288), (1024, 4096, 128))
    if DEVICE == "cuda"
    else ((96, 64, 4),)
)
AUTOCAST = Settings(DEVICE, autocast=True)
# torch takes up to a minute to compile a step, so that only the first size is compiled.
SAELENS_SETTINGS = {
    "autocast": AUTOCAST,
    "bfloat16": Settings(DEVICE, dtype="bfloat16"),
    "autocast, compiled": Settings(DEVICE, autocast=True, compiled=True),
}
SPARSIFY_SETTINGS = {"its own": Settings(DEVICE)}
STEPS = (
    ("SAELens' trainer: binary against topk", SAELENS, saelens_pair, SAELENS_SETTINGS),
    ("SAELens' trainer: binary_entropy against topk", SAELENS, entropy_pair, SAELENS_SETTINGS),
    ("sparsify's trainer: topk_binary against topk", SPARSIFY, sparsify_pair, SPARSIFY_SETTINGS),
)
STEP_COLUMNS = (
    "latents",
    "tokens",
    "k",
    "settings",
    "ours, ms",
    "host's, ms",
    "ratio",
    "ours, MiB",
    "host's, MiB",
    "ours, waits",
    "host's, waits",
    "encoder product, ms",
)
FORM_COLUMNS = ("host", "latents", "tokens", "k", "index form, ms", "dense form, ms", "ratio")
STARTED = time.monotonic()


def main() -> None:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: times say nothing"
    print(f"{name}, torch {torch.__version__}")
    bandwidth = copied_bytes_a_second()
    print(f"\nA copy reads and writes {bandwidth / 1e12:.2f} TB/s.")
    kernels: list[Measured] = []
    print_table("Kernels against torch", COLUMNS, kernel_rows(bandwidth, kernels))
    forms: list[FormTime] = []
    print_table("Steps in index form and in dense form", FORM_COLUMNS, form_rows(forms))
    entry = verdict((each.time() for each in kernels if each.case.switched), forms)
    for title, trainer, pair, settings in STEPS:
        print_table(title, STEP_COLUMNS, step_rows(trainer, pair, settings))
    print("\nVerdict: in PATHS of sae_binary_ext/coding/kernels/processor.py, put")
    print(f'\n    "cuda": {written(entry)}')


def in_time() -> bool:
    """Whether there is time for another row."""
    return time.monotonic() - STARTED < LIMIT


def written(entry: Paths) -> str:
    """An entry of PATHS as Python code."""
    names = ", ".join(f'"{name}"' for name in sorted(entry.kernels))
    kernels = f"frozenset({{{names}}})" if names else "frozenset()"
    return f"Paths(latents_a_learner={entry.latents_a_learner}, kernels={kernels}),"


def copied_bytes_a_second() -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(2**30 if DEVICE == "cuda" else 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(repeat(lambda: target.copy_(source), DEVICE))


def kernel_rows(bandwidth: float, measured: list[Measured]) -> Iterator[tuple[object, ...]]:
    """Yield a table row for each product and size, and add what was measured to a list."""
    for size in SIZES:
        for each in measure_kernels(*size, DEVICE):
            measured.append(each)
            yield each.case.name, *size, *each.cells(bandwidth)


def form_rows(measured: list[FormTime]) -> Iterator[tuple[object, ...]]:
    """Yield a table row for each size and host, and add what was measured to a list."""
    hosts = (
        ("SAELens", SAELENS, saelens_pair, AUTOCAST),
        ("sparsify", SPARSIFY, sparsify_pair, Settings(DEVICE)),
    )
    for latents, tokens, k in FORM_SIZES:
        for host, trainer, pair, settings in hosts:
            config = pair(latents, k)[0]
            runners = [
                with_paths(trainer.steps(config, tokens, settings), Paths(least))
                for least in (1, NEVER)
            ]
            times = compare(*runners)
            measured.append(FormTime(latents / (2 * k), times.ratio))
            yield host, latents, tokens, k, *cells(times)


def with_paths(run: Runner, entry: Paths) -> Runner:
    """A runner that runs with another entry of PATHS."""

    def runner(times: int) -> list[float]:
        with patch.dict(PATHS, {DEVICE: entry}):
            return run(times)

    return runner


def step_rows(
    trainer: Trainer, pair: Pair, settings: dict[str, Settings]
) -> Iterator[tuple[object, ...]]:
    """Yield a table row for each size and setting, and one for the fastest setting of each size."""
    for size in SIZES:
        latents, tokens, k = size
        product = f"{1e3 * encoder_product(latents, tokens):.3f}"
        all_times: list[Compared] = []
        for name, each in settings.items():
            if not in_time() or (each.compiled and size != SIZES[0]):
                continue
            runners = [trainer.steps(config, tokens, each) for config in pair(latents, k)]
            times = compare(*runners)
            all_times.append(times)
            peaks = [f"{peak_mebibytes(runner):.0f}" for runner in runners]
            waits = [waits_of_a_step(runner) for runner in runners]
            yield *size, name, *cells(times), *peaks, *waits, product
        if not all_times:
            return
        ours = min(times.ours for times in all_times)
        theirs = min(times.theirs for times in all_times)
        fastest = Compared(ours, theirs, ours / theirs)
        yield *size, "fastest of each", *cells(fastest), "", "", "", "", product


def cells(times: Compared) -> tuple[str, str, str]:
    """Table cells: our time and the host's time in milliseconds, and their ratio."""
    return f"{1e3 * times.ours:.2f}", f"{1e3 * times.theirs:.2f}", f"**{times.ratio:.2f}**"


def encoder_product(latents: int, tokens: int) -> float:
    """Seconds of the encoder's matrix product alone, in bfloat16."""
    x = torch.randn(tokens, WIDTH, device=DEVICE).bfloat16()
    weight = torch.randn(WIDTH, latents, device=DEVICE).bfloat16()
    return median_seconds(repeat(lambda: torch.mm(x, weight), DEVICE))


def peak_mebibytes(run: Runner) -> float:
    """Peak of the GPU's memory during a run, less the memory that was in use before, in MiB."""
    if DEVICE == "cpu":
        return float("nan")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(2)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def waits_of_a_step(run: Runner) -> float:
    """How often torch notices that a step waits for the GPU, as the difference of two runs."""
    if DEVICE == "cpu":
        return float("nan")
    counts: list[int] = []
    torch.cuda.set_sync_debug_mode("warn")
    for times in (1, 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(times)
        counts.append(sum("synchroniz" in str(each.message) for each in caught))
    torch.cuda.set_sync_debug_mode("default")
    return counts[1] - counts[0]


if __name__ == "__main__":
    main()
