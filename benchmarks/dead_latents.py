"""Dead latents of `binary` by the window after which a latent counts as dead, at several run sizes.

Usage: python -m benchmarks.dead_latents runs/demo/activations.safetensors [RUN ...]

Trains 4608 latents, k = 32, at a learning rate of 3e-3 on the first 255,000 tokens of the demo's
activations, and counts the latents that never fire on the next 30,000. A RUN is four numbers of
tokens, joined by commas: those of a step, of the run, of the window (0 is SAELens' window of 1000
steps) and of the refit at the end. Tables are in docs/derived.md and docs/choosing.md.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_binary_ext.commands.demo.coders import trainer_on
from sae_binary_ext.measure import measure
from sae_binary_ext.saelens import BinaryTrainingSAEConfig

TRAINED, MEASURED, LR = 255_000, 30_000, 3e-3
RUNS = (
    "4096,255000,0,0",
    "1024,255000,0,0",
    "1024,255000,0,100000",
    "512,510000,0,0",
    "512,510000,4608,0",
    "256,255000,0,0",
    "256,255000,4608,0",
)


def dead_latents(activations: Tensor, batch: int, tokens: int, window: int, refit: int) -> str:
    """Train one coder on activations [tokens, d_in]; a row of the table."""
    config = BinaryTrainingSAEConfig(
        d_in=activations.shape[1],
        d_sae=4608,
        k=32,
        normalize_activations="expected_average_only_in",
        dead_window_tokens=window,
        refit_tokens=refit,
    )
    settings: dict[str, Any] = {"total_training_samples": tokens, "lr": LR, "lr_end": LR / 10}
    trainer = trainer_on(activations[:TRAINED], config, batch, 0, **settings)
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # as in benchmarks.reconstruction.training
    coder = trainer.fit()
    held_out = activations[TRAINED : TRAINED + MEASURED].float()
    figures = measure(coder, held_out, held_out)
    numbers = (batch, tokens, trainer.n_training_steps, window, refit, figures.dead)
    return f"| {' | '.join(map(str, numbers))} | {figures.fvu:.3f} |"


def main(path: Path, runs: tuple[str, ...]) -> None:
    activations = load_file(path)["train"]
    for run in runs:
        print(dead_latents(activations, *map(int, run.split(","))), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or RUNS)
