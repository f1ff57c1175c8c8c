"""Measures memory during half an hour of training, with checkpoints, in the hosts' own trainers.

Usage: python -m benchmarks.soak [MINUTES]

Both hosts train at the same time, each in its own process. After each tenth of the time, a line
says how much memory each process has in use.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from sae_lens import LoggingConfig, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sparsify import TrainConfig, Trainer

from benchmarks.hosts import WIDTH, ActivationTable, quiet, random_activations
from benchmarks.measure import machine, print_table, status
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig

MINUTES = 30.0
LATENTS, TOKENS, CONTEXT = 2304, 1024, 64
LINES = 10


def train_in_saelens(seconds: float, folder: Path) -> Iterator[int]:
    """Train in SAELens, with a checkpoint after every 100 steps. Yields the count of steps done."""
    batches = random_activations(8, TOKENS)
    config = BinaryEntropyTrainingSAEConfig(
        d_in=WIDTH, d_sae=LATENTS, covariance_coefficient=1e-6, covariance_sample=256
    )
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=TOKENS,
            lr=1e-3,
            lr_end=1e-4,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=TrainingSAE.from_dict(config.to_dict()),
        data_provider=iter(batches),
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        trainer.step(batches[trainer.n_training_steps % len(batches)])
        trainer.n_training_steps += 1
        if trainer.n_training_steps % 100 == 0:
            trainer.save_checkpoint("last", folder)
        yield trainer.n_training_steps


def train_in_sparsify(seconds: float, folder: Path) -> Iterator[int]:
    """Train and save coders in sparsify, 100 steps each. Yields the number of steps done."""
    activations = random_activations(8, TOKENS).flatten(0, 1)
    rows = torch.arange(len(activations)).view(-1, CONTEXT)
    taken = torch.arange(100 * TOKENS // CONTEXT) % len(rows)
    dataset = Dataset.from_dict({"input_ids": rows[taken].tolist()}).with_format("torch")

    def settings() -> TrainConfig:
        """A new config for each run of sparsify, because the Trainer changes its config."""
        return TrainConfig(
            BinarySparseCoderConfig(num_latents=LATENTS, k=32),
            batch_size=TOKENS // CONTEXT,
            layers=[0],
            lr=1e-3,
            save_every=20,
            save_dir=str(folder),
            run_name="run",
            log_to_wandb=False,
        )

    steps = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with quiet():
            Trainer(settings(), dataset, ActivationTable(activations)).fit()
        steps += 100
        yield steps


def watch(
    train: Callable[[float, Path], Iterator[int]],
    seconds: float,
    lines: "multiprocessing.Queue[tuple[str, int, int]]",
) -> None:
    """Train, and report the memory of the process, in KiB, after each tenth of the time."""
    torch.set_num_threads(1)
    started, told = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for steps in train(seconds, Path(folder)):
            if time.monotonic() - started > (told + 1) * seconds / LINES:
                told += 1
                lines.put((train.__name__, steps, status("VmRSS")))


def main() -> None:
    seconds = 60 * (float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES)
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    trainers = (train_in_saelens, train_in_sparsify)
    processes = [context.Process(target=watch, args=(train, seconds, lines)) for train in trainers]
    for process in processes:
        process.start()
    print(machine())
    started = time.monotonic()

    def rows() -> Iterator[tuple[str, str, int, str]]:
        while any(process.is_alive() for process in processes) or not lines.empty():
            if lines.empty():
                time.sleep(0.1)
                continue
            name, steps, held = lines.get()
            minutes = f"{(time.monotonic() - started) / 60:.1f}"
            yield minutes, name.removeprefix("train_in_"), steps, f"{held / 1024:.0f}"

    print_table("Memory while training", ("minutes", "host", "steps", "MiB held"), rows())


if __name__ == "__main__":
    main()
