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
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_binary_ext.registration import warn_if_untested
from sae_binary_ext.saelens.autoencoder import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from sae_binary_ext.saelens.binary_entropy import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
)
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE
from sae_binary_ext.saelens.resuming import (
    folded_scale,
    load_random_state,
    save_folded_scale,
    save_random_state,
)
from sae_binary_ext.saelens.scaling import FiniteScaler
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
    _leave_out_what_is_not_finite()
    _save_no_spoilt_coder()
    setattr(sae_lens, _REGISTERED, True)


def _resume_where_training_was() -> None:
    """Checkpoints of this package's coders keep all that the rest of training depends on.

    SAELens' hold no random state. Its periodic ones are written after a batch's optimizer step and
    before that step is counted, so that schedules would lag by one. Final ones do not hold
    the activations' scale, which is folded into their weights.
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
            save_folded_scale(new, self.sae)

    @functools.wraps(stock_load)
    def load_trainer_state(self: SAETrainer[Any, Any], checkpoint_path: Path | str) -> None:
        if not isinstance(self.sae, FirstBatchTrainingSAE):
            stock_load(self, checkpoint_path)
            return
        folded = folded_scale(Path(checkpoint_path), self.sae.cfg)
        stock_load(self, checkpoint_path)
        if folded is not None:
            folded.give_to(self.activation_scaler)
        self.n_training_steps = self.lr_scheduler.last_epoch
        load_random_state(Path(checkpoint_path))

    SAETrainer.save_trainer_state = save_trainer_state
    SAETrainer.load_trainer_state = load_trainer_state


def _leave_out_what_is_not_finite() -> None:
    """Estimates and statistics are of the tokens that this package's coders train on.

    SAELens' estimates read all tokens, and its firing rates are shares of a whole batch.
    """
    stock_init, stock_step = SAETrainer.__init__, SAETrainer.step

    @functools.wraps(stock_init)
    def init(self: SAETrainer[Any, Any], *args: Any, **kwargs: Any) -> None:
        stock_init(self, *args, **kwargs)
        if isinstance(self.sae, FirstBatchTrainingSAE):
            skips = self.sae.cfg.skip_non_finite
            self.activation_scaler = FiniteScaler(skip_non_finite=skips)

    @functools.wraps(stock_step)
    def step(self: SAETrainer[Any, Any], batch: Tensor) -> TrainStepOutput:
        before = self.n_frac_active_samples
        output = stock_step(self, batch)
        if isinstance(self.sae, FirstBatchTrainingSAE):
            self.n_frac_active_samples = before + len(output.sae_in)
        return output

    SAETrainer.__init__ = init
    SAETrainer.step = step


def _save_no_spoilt_coder() -> None:
    """Begin no checkpoint of a coder of this package that has a parameter which is not finite."""
    stock_save, stock_save_all = SAETrainer.save_checkpoint, MultiSAETrainer.save_checkpoint

    @functools.wraps(stock_save)
    def save_checkpoint(self: SAETrainer[Any, Any], *args: Any, **kwargs: Any) -> None:
        _check_saveable(self.sae)
        stock_save(self, *args, **kwargs)

    @functools.wraps(stock_save_all)
    def save_all(self: MultiSAETrainer, *args: Any, **kwargs: Any) -> None:
        for sae in self.saes.values():
            _check_saveable(sae)
        stock_save_all(self, *args, **kwargs)

    SAETrainer.save_checkpoint = save_checkpoint
    MultiSAETrainer.save_checkpoint = save_all


def _check_saveable(sae: Any) -> None:
    if isinstance(sae, FirstBatchTrainingSAE):
        sae.check_saveable()
