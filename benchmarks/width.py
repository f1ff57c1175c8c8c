"""Times and memory of training steps of coders as wide as those of a model of a billion parameters.

Usage: python -m benchmarks.width

The sizes are those of a coder of Llama-3.2-1B with 32 and 64 latents for each dimension. Each coder
trains in a process of its own, because two coders of the largest size need 24 GB.
"""

import statistics
from collections.abc import Iterator
from functools import partial

from sae_lens import TopKTrainingSAEConfig
from sparsify import SparseCoderConfig

from benchmarks.hosts import saelens_steps, sparsify_steps
from benchmarks.measure import MakeRunner, alone, machine, print_table
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig

D_IN, TOKENS, K = 2048, 2048, 64
LATENTS = (65_536, 131_072)
# The first step also starts the coder, and is not counted.
STEPS = 3
IN_SPARSIFY: MakeRunner = partial(sparsify_steps, width=D_IN)
COLUMNS = ("coder", "latents", "step, s", "of the host's", "peak, MiB", "of the host's")


def main() -> None:
    print(machine())
    title = f"Steps and peak memory, {D_IN} dimensions, {TOKENS} tokens, k = {K}"
    print_table(title, COLUMNS, rows())


def rows() -> Iterator[tuple[str, ...]]:
    """Rows of the table; in each host the stock coder comes first."""
    for latents in LATENTS:
        size = {"d_in": D_IN, "d_sae": latents}
        in_saelens = {
            "SAELens, topk": TopKTrainingSAEConfig(**size, k=K),
            "SAELens, binary": BinaryTrainingSAEConfig(**size, k=K),
            "SAELens, binary_entropy": BinaryEntropyTrainingSAEConfig(**size),
        }
        in_sparsify = {
            "sparsify, topk": SparseCoderConfig(num_latents=latents, k=K),
            "sparsify, topk_binary": BinarySparseCoderConfig(num_latents=latents, k=K),
        }
        yield from rows_of(in_saelens, saelens_steps, latents)
        yield from rows_of(in_sparsify, IN_SPARSIFY, latents)


def rows_of(coders: dict[str, object], make: MakeRunner, latents: int) -> Iterator[tuple[str, ...]]:
    """Rows of one host's coders; ratios are beside the first of them."""
    first: tuple[float, float] | None = None
    for name, config in coders.items():
        seconds, peak = alone(make, config, TOKENS, runs=STEPS)
        found = statistics.median(seconds[1:]), peak
        first = first or found
        ratios = [f"{mine / host:.2f}" for mine, host in zip(found, first, strict=True)]
        yield name, f"{latents:,}", f"{found[0]:.2f}", ratios[0], f"{found[1]:,.0f}", ratios[1]


if __name__ == "__main__":
    main()
