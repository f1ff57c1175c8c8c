"""Times of a training step of binary coders and of the hosts' TopK coders, in the hosts' trainers.

Usage: python -m benchmarks.steps [--full]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sae_lens import TopKTrainingSAEConfig
from sparsify import SparseCoderConfig

from benchmarks.hosts import (
    WIDTH,
    saelens_optimiser,
    saelens_steps,
    sparsify_optimiser,
    sparsify_steps,
)
from benchmarks.measure import (
    MakeRunner,
    asks_for_all,
    ceilings,
    compare,
    median_seconds,
    peak_mebibytes,
    print_table,
)
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, BinaryTrainingSAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig

# A function that makes our config and the host's, from the number of latents and k.
Pair = Callable[[int, int], tuple[Any, Any]]
# Number of latents, and tokens per step. SAELens keeps five copies of the pre-activations in
# memory, so the widest coders take fewer tokens.
SIZES = ((2304, 4096), (4608, 4096), (9216, 2048), (36864, 1024))
# The sizes of k in a short run and in a full one. Rows of other k say the same.
KS, ALL_KS = (32,), (16, 32, 64, 128)
COLUMNS = (
    "latents",
    "tokens",
    "k",
    "ours, s",
    "host's, s",
    "ratio",
    "ours, MiB",
    "host's, MiB",
    "encoder product, s",
    "optimiser, s",
    "both / host's",
    "copy, s",
)


def saelens_pair(latents: int, k: int) -> tuple[Any, Any]:
    size = {"d_in": WIDTH, "d_sae": latents}
    return BinaryTrainingSAEConfig(**size, k=k), TopKTrainingSAEConfig(**size, k=k)


def saelens_selected_pair(latents: int, k: int) -> tuple[Any, Any]:
    ours, theirs = saelens_pair(latents, k)
    return replace(ours, surrogate_latents="selected"), theirs


def entropy_pair(latents: int, k: int) -> tuple[Any, Any]:
    size = {"d_in": WIDTH, "d_sae": latents}
    return BinaryEntropyTrainingSAEConfig(**size), TopKTrainingSAEConfig(**size, k=k)


def sparsify_pair(latents: int, k: int) -> tuple[Any, Any]:
    return (
        BinarySparseCoderConfig(num_latents=latents, k=k),
        SparseCoderConfig(num_latents=latents, k=k),
    )


def sparsify_selected_pair(latents: int, k: int) -> tuple[Any, Any]:
    ours, theirs = sparsify_pair(latents, k)
    return replace(ours, ste_latents="selected"), theirs


@dataclass(frozen=True)
class Trainer:
    """A host's trainer.

    Attributes:
        steps: makes a runner of whole training steps.
        optimiser: makes a runner of the optimiser's steps alone.
    """

    steps: MakeRunner
    optimiser: MakeRunner


SAELENS = Trainer(saelens_steps, saelens_optimiser)
SPARSIFY = Trainer(sparsify_steps, sparsify_optimiser)
# Each table's title, trainer and configs, and its sizes of k in a short run and in a full one. A
# table without a size of k is left out.
TABLES = (
    ("SAELens' trainer: binary against topk", SAELENS, saelens_pair, KS, ALL_KS),
    (
        "SAELens' trainer: binary against topk, only selected latents learn",
        SAELENS,
        saelens_selected_pair,
        (),
        ALL_KS,
    ),
    ("SAELens' trainer: binary_entropy against topk", SAELENS, entropy_pair, KS, KS),
    ("sparsify's trainer: topk_binary against topk", SPARSIFY, sparsify_pair, KS, ALL_KS),
    (
        "sparsify's trainer: topk_binary against topk, only selected latents learn",
        SPARSIFY,
        sparsify_selected_pair,
        (),
        ALL_KS,
    ),
)


def main(*, full: bool) -> None:
    for title, trainer, pair, short, all_ks in TABLES:
        if ks := all_ks if full else short:
            print_table(title, COLUMNS, rows_of(trainer, pair, ks))


def rows_of(trainer: Trainer, pair: Pair, ks: tuple[int, ...]) -> Iterator[tuple[object, ...]]:
    """Yields a row of the table for each size and k, as soon as it is measured."""
    for latents, tokens in SIZES:
        floor = ceilings(tokens, WIDTH, latents)
        for k in ks:
            ours, theirs = pair(latents, k)
            times = compare(trainer.steps(ours, tokens), trainer.steps(theirs, tokens))
            peaks = [peak_mebibytes(trainer.steps, config, tokens) for config in (ours, theirs)]
            optimiser = median_seconds(trainer.optimiser(theirs, tokens))
            yield (
                latents,
                tokens,
                k,
                *times.cells(),
                *(f"{peak:.0f}" for peak in peaks),
                f"{floor.product:.3f}",
                f"{optimiser:.3f}",
                f"{(floor.product + optimiser) / times.theirs:.2f}",
                f"{floor.copy:.3f}",
            )


if __name__ == "__main__":
    main(full=asks_for_all())
