"""Tells SAELens about the binary architectures. Everything replaced in it stands here."""

import functools
from pathlib import Path
from typing import Any

import sae_lens
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.training.sae_trainer import SAETrainer

from sae_binary_ext.registration import warn_if_untested
from sae_binary_ext.saelens.autoencoder import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from sae_binary_ext.saelens.entropy import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
)
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE
from sae_binary_ext.saelens.resuming import load_random_state, save_random_state
from sae_binary_ext.saelens.transcoder import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAE,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
    TopKTranscoderTrainingSAE,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saving import replacing

# Of each training architecture, its classes in training and those it is loaded as.
ARCHITECTURES = (
    (BinaryTrainingSAE, BinaryTrainingSAEConfig, BinarySAE, BinarySAEConfig),
    (BinaryEntropyTrainingSAE, BinaryEntropyTrainingSAEConfig, BinarySAE, BinarySAEConfig),
    (
        BinaryTranscoderTrainingSAE,
        BinaryTranscoderTrainingSAEConfig,
        BinaryTranscoder,
        BinaryTranscoderConfig,
    ),
    (
        TopKTranscoderTrainingSAE,
        TopKTranscoderTrainingSAEConfig,
        TopKTranscoder,
        TopKTranscoderConfig,
    ),
)

_REGISTERED = "_sae_binary_ext_registered"


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent."""
    if hasattr(sae_lens, _REGISTERED):
        return
    warn_if_untested(sae_lens, oldest="6.54", below="6.55")
    for training_coder, training_config, coder, config in ARCHITECTURES:
        architecture = training_config.architecture()
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(architecture, training_coder, training_config)
        # Under this name too where the saved coder has another (binary_entropy), so that
        # SAE.load_from_disk reads training checkpoints.
        if architecture not in SAE_CLASS_REGISTRY:
            register_sae_class(architecture, coder, config)
    _resume_where_training_was()
    setattr(sae_lens, _REGISTERED, True)


def _resume_where_training_was() -> None:
    """Checkpoints of this package's coders keep all that the rest of training depends on.

    SAELens' hold no random state. Its periodic ones are written after a batch's optimizer step and
    before that step is counted, so that schedules would lag by one.
    """
    stock_save, stock_load = SAETrainer.save_trainer_state, SAETrainer.load_trainer_state

    @functools.wraps(stock_save)
    def save_trainer_state(self: SAETrainer[Any, Any], checkpoint_path: Path) -> None:
        if not isinstance(self.sae, FirstBatchTrainingSAE):
            stock_save(self, checkpoint_path)
            return
        with replacing(checkpoint_path) as new:
            stock_save(self, new)
            save_random_state(new)

    @functools.wraps(stock_load)
    def load_trainer_state(self: SAETrainer[Any, Any], checkpoint_path: Path | str) -> None:
        stock_load(self, checkpoint_path)
        if isinstance(self.sae, FirstBatchTrainingSAE):
            self.n_training_steps = self.lr_scheduler.last_epoch
            load_random_state(Path(checkpoint_path))

    SAETrainer.save_trainer_state = save_trainer_state
    SAETrainer.load_trainer_state = load_trainer_state
