"""Measure the training steps of make bench, and the Triton kernels, on a GPU.

Usage: python -m benchmarks.gpu

The kernels' results are compared with results in float64, and their times with torch's times. The
hosts' training steps are measured with each setting that makes them fast. Without a GPU, run

    TRITON_INTERPRET=1 python -m benchmarks.gpu

This command runs the same steps at one small size. It shows that all steps run; its times mean
nothing.
"""

from collections.abc import Iterator
from itertools import chain

import torch

from benchmarks.hosts import WIDTH, Settings
from benchmarks.kernels import COLUMNS, kernel_rows
from benchmarks.measure import Compared, Runner, compare, median_seconds, print_table, repeat
from benchmarks.steps import SAELENS, SPARSIFY, Pair, Trainer, saelens_pair, sparsify_pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Number of latents, tokens a step, and k.
SIZES = (
    ((4608, 4096, 32), (4608, 4096, 128), (36_864, 4096, 32), (36_864, 4096, 128))
    if DEVICE == "cuda"
    else ((96, 64, 4),)
)
SAELENS_SETTINGS = {
    "float32": Settings(DEVICE),
    "autocast": Settings(DEVICE, autocast=True),
    "autocast, compiled": Settings(DEVICE, autocast=True, compiled=True),
}
SPARSIFY_SETTINGS = {"its own": Settings(DEVICE)}
STEPS = (
    ("SAELens' trainer: binary against topk", SAELENS, saelens_pair, SAELENS_SETTINGS),
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
    "encoder product, ms",
)


def main() -> None:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: times say nothing"
    print(f"{name}, torch {torch.__version__}")
    bandwidth = copied_bytes_a_second()
    print(f"\nA copy reads and writes {bandwidth / 1e12:.2f} TB/s.")
    rows = chain.from_iterable(kernel_rows(*size, DEVICE, bandwidth) for size in SIZES)
    print_table("Kernels against torch", COLUMNS, rows)
    for title, trainer, pair, settings in STEPS:
        print_table(title, STEP_COLUMNS, step_rows(trainer, pair, settings))


def copied_bytes_a_second() -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(2**30 if DEVICE == "cuda" else 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(repeat(lambda: target.copy_(source), DEVICE))


def step_rows(
    trainer: Trainer, pair: Pair, settings: dict[str, Settings]
) -> Iterator[tuple[object, ...]]:
    """Yield a table row for each size and setting, and one for the fastest setting of each size."""
    for latents, tokens, k in SIZES:
        product = f"{1e3 * encoder_product(latents, tokens):.3f}"
        all_times: list[Compared] = []
        for name, each in settings.items():
            runners = [trainer.steps(config, tokens, each) for config in pair(latents, k)]
            times = compare(*runners)
            all_times.append(times)
            peaks = [f"{peak_mebibytes(runner):.0f}" for runner in runners]
            yield latents, tokens, k, name, *cells(times), *peaks, product
        ours = min(times.ours for times in all_times)
        theirs = min(times.theirs for times in all_times)
        fastest = Compared(ours, theirs, ours / theirs)
        yield latents, tokens, k, "fastest of each", *cells(fastest), "", "", product


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


if __name__ == "__main__":
    main()
