"""Times of training steps beside another busy process, such as a data loader or a second training.

Usage: python -m benchmarks.busy
"""

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from benchmarks.measure import compare, print_table
from benchmarks.steps import SAELENS, SPARSIFY, saelens_pair, sparsify_pair

LATENTS, TOKENS, K = 4608, 4096, 32
TRAINERS = (
    ("SAELens: binary against topk", SAELENS, saelens_pair),
    ("sparsify: topk_binary against topk", SPARSIFY, sparsify_pair),
)
COLUMNS = (
    "trainer",
    "ours, s",
    "host's, s",
    "ratio",
    "ours beside another, s",
    "host's beside another, s",
    "ratio beside another",
    "beside another / alone",
)


@contextmanager
def busy_process() -> Generator[None]:
    """A process that uses one core for as long as this context lasts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    title = f"Beside one busy process, {LATENTS} latents, {TOKENS} tokens, k = {K}"
    print_table(title, COLUMNS, rows())


def rows() -> Iterator[tuple[str, ...]]:
    for name, trainer, pair in TRAINERS:
        steps = [trainer.steps(config, TOKENS) for config in pair(LATENTS, K)]
        alone = compare(*steps)
        with busy_process():
            beside = compare(*steps)
        yield name, *alone.cells(), *beside.cells(), f"{beside.ratio / alone.ratio:.2f}"


if __name__ == "__main__":
    main()
