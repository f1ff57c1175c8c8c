"""Runs blocks of tokens side by side, each on one thread from its first operation to its last.

torch divides each operation between its threads and then waits for the slowest of them. If another
process uses a core, each of a few hundred small operations waits until the scheduler gives that
core back. A block that runs on one thread waits for no other, and a slow thread takes fewer blocks.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Block = TypeVar("Block")
Result = TypeVar("Result")


def blocks_of_threads(rows: Tensor, most: int) -> tuple[Tensor, ...]:
    """Blocks of at most this many rows, of equal size and equally many for each thread."""
    threads = torch.get_num_threads()
    count = math.ceil(len(rows) / most / threads) * threads
    return rows.chunk(count)


def map_blocks(work: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
    """Results of work for each block, in order. Runs without gradient."""
    threads = min(torch.get_num_threads(), len(blocks))
    if threads < 2:
        return [work(block) for block in blocks]
    inference = torch.is_inference_mode_enabled()

    def run(block: Block) -> Result:
        # This order matters: inference_mode(False) alone turns gradients on.
        with torch.inference_mode(inference), torch.no_grad():
            return work(block)

    return list(_pool(threads).map(run, blocks))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations are not divided further."""
    everywhere = torch.get_num_threads()
    started = Barrier(threads)

    def start(_: int) -> None:
        # torch sets a new thread's number on first use, which would undo a number set before.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "sae_binary_ext blocks")
    list(pool.map(start, range(threads)))
    # The call above also set the number of threads of all threads that start later.
    torch.set_num_threads(everywhere)
    return pool


# A child process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
