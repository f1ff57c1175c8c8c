"""Refined codes beside the codes of a linear encoder, and beside SAELens' topk.

Usage: python -m benchmarks.refined runs/demo/activations.safetensors [RUN ...]

Trains 2304 latents on the first 255,000 tokens of the demo's activations, each twice, in steps of
512 tokens, with one learning rate that falls to a tenth. The decoders of binary coders are refitted
to 90,000 of these tokens. The next 30,000 tokens are measured. A RUN is an architecture and a
number: the cost of a bit, or k for topk. The table is in docs/choosing.md.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens import TopKTrainingSAEConfig, TrainingSAEConfig
from safetensors.torch import load_file
from torch import Tensor

from sae_binary_ext.commands.demo.coders import trainer_on
from sae_binary_ext.measure import measure
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig, RefinedTrainingSAEConfig

TRAINED, MEASURED, BATCH, EPOCHS = 255_000, 30_000, 512, 2
LR = 2e-3
REFITTED = 90_000
RUNS = ("binary_refined,4e-4", "binary_entropy,4e-4", "topk,16", "topk,32")
SHARED: dict[str, Any] = {
    "d_in": 576,
    "d_sae": 2304,
    "normalize_activations": "expected_average_only_in",
}
# topk's learning rate, norm and window are the best found for it in docs/short-training.md.
CONFIGS: dict[str, Callable[[str], TrainingSAEConfig]] = {
    "binary_refined": lambda cost: RefinedTrainingSAEConfig(
        **SHARED, refit_tokens=REFITTED, cost_of_bit=float(cost), refine_passes=3
    ),
    "binary_entropy": lambda cost: BinaryEntropyTrainingSAEConfig(
        **SHARED, refit_tokens=REFITTED, entropy_coefficient=float(cost), surrogate_temperature=0.5
    ),
    "topk": lambda k: TopKTrainingSAEConfig(**SHARED, k=int(k), decoder_init_norm=1.0),
}


def row(activations: Tensor, architecture: str, number: str) -> str:
    """Train one coder on activations [tokens, d_in]; a row of the table."""
    config = CONFIGS[architecture](number)
    settings: dict[str, Any] = {"lr": LR, "lr_end": LR / 10}
    settings["total_training_samples"] = EPOCHS * TRAINED
    if architecture == "topk":
        settings["dead_feature_window"] = 100
    trainer = trainer_on(activations[:TRAINED], config, BATCH, 0, **settings)
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # as in benchmarks.reconstruction.training
    started = time.perf_counter()
    coder = trainer.fit()
    seconds = time.perf_counter() - started
    held_out = activations[TRAINED : TRAINED + MEASURED].float()
    found = measure(coder, held_out, held_out)
    bits = found.entropy_bits + 8 * found.l0 * (architecture == "topk")
    return (
        f"| {architecture}, {number} | {found.fvu:.3f} | {bits:.0f} | {found.l0:.1f} | "
        f"{found.dead} | {found.dense_10} | {seconds:.0f} |"
    )


def main(path: Path, runs: tuple[str, ...]) -> None:
    activations = load_file(path)["train"]
    print("| coder | FVU | bits a token | L0 | dead | dense >10% | seconds |")
    print("|---|---|---|---|---|---|---|")
    for run in runs:
        print(row(activations, *run.split(",")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or RUNS)
