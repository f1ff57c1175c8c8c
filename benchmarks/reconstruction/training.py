"""Trains one coder in SAELens' own trainers, on saved activations."""

import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETrainer
from sae_lens.config import LoggingConfig, SAETrainerConfig
from torch import Tensor

from benchmarks.reconstruction.activations import Site, Split
from benchmarks.reconstruction.cases import Case
from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.measure import refit_decoder
from sae_binary_ext.saelens.pair_trainer import PairTrainer
from sae_binary_ext.saelens.pairs import split_pairs

EPOCHS = 2
# Number of batches from which the trainers estimate the norm of activations before training.
NORM_BATCHES = 20
REFIT_TOKENS = 2048


def train(
    case: Case, site: Site, split: Split, seed: int, folder: Path, epochs: int = EPOCHS
) -> tuple[SAE[Any], float]:
    """Train a coder; returns its inference coder, loaded from its file, and the seconds it took.

    The seconds include refitting.
    """
    torch.manual_seed(seed)
    tokens = epochs * len(split.train)
    settings = SAETrainerConfig(
        total_training_samples=tokens,
        train_batch_size_samples=case.batch_size,
        lr=case.lr,
        lr_end=0.0,
        lr_decay_steps=tokens // case.batch_size,
        adam_beta2=case.adam_beta2,
        dead_feature_window=case.dead_feature_window,
        n_batches_for_norm_estimate=NORM_BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = case.new_coder(site, split)
    batches = shuffled_batches(split.train, case.batch_size, seed)
    started = time.perf_counter()
    if site.kind == "autoencoder":
        trainer: Any = SAETrainer(settings, sae, batches)
        _fuse(trainer)
        coder: Any = trainer.fit()
    else:
        pairs = ({"pairs": batch} for batch in batches)
        trainer = PairTrainer(
            settings, {}, saes={"it": sae}, hook_names={"it": "pairs"}, data_provider=pairs
        )
        _fuse(trainer.trainers["it"])
        coder = trainer.fit()["it"]
    coder.save_inference_model(folder)
    trained: Any = SAE.load_from_disk(folder)
    if case.refits:
        refit_decoder(trained, (in_pairs(part, site) for part in split.train.split(REFIT_TOKENS)))
    return trained, time.perf_counter() - started


def _fuse(trainer: SAETrainer[Any, Any]) -> None:
    # Fused Adam makes the same steps in an eighth of the time, and SAELens has no setting for it.
    for group in trainer.optimizer.param_groups:
        group["fused"] = True


def in_pairs(activations: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """Split the activations of a Split into inputs and targets, both float32."""
    if site.kind == "autoencoder":
        return activations.float(), activations.float()
    width = activations.shape[-1] // 2
    return split_pairs(activations.float(), width, width)
