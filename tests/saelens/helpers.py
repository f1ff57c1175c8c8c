"""Helpers that train coders in SAELens' own trainer, on a stream of activations."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import (
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from torch import Tensor

BATCH = 200


def endless(activations: Tensor) -> Iterator[Tensor]:
    while True:
        yield from activations.split(BATCH)


def trainer_for(
    config: TrainingSAEConfig, activations: Tensor, steps: int = 20, **settings: Any
) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    return SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            **{
                "lr": 3e-3,
                "lr_end": 3e-4,
                "n_batches_for_norm_estimate": 5,
                "logger": LoggingConfig(log_to_wandb=False),
                **settings,
            },
        ),
        sae=TrainingSAE.from_dict(config.to_dict()),
        data_provider=endless(activations),
    )


def fvu(coder: Any, activations: Tensor) -> float:
    with torch.no_grad():
        error = (coder(activations) - activations).square().sum()
    return (error / (activations - activations.mean(0)).square().sum()).item()


def train_stock_coder() -> str:
    """Train SAELens' own TopK coder and return a digest of its weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that every process sums in the same order
    torch.manual_seed(0)
    config = TopKTrainingSAEConfig(d_in=8, d_sae=32, k=4)
    coder = trainer_for(config, torch.randn(1000, 8), steps=30).fit()
    torch.set_num_threads(threads)
    weights = [parameter.detach().numpy().tobytes() for parameter in coder.parameters()]
    return hashlib.sha256(b"".join(weights)).hexdigest()
