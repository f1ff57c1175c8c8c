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
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_binary_ext.saelens import autoencoder, binary_entropy, transcoder
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE
from sae_binary_ext.saelens.private import HOST
from sae_binary_ext.saelens.resuming import (
    folded_scale,
    load_random_state,
    save_folded_scale,
    save_random_state,
    scale_beside,
)
from sae_binary_ext.saelens.scaling import FiniteScaler
from sae_binary_ext.saving import replacing

# Each architecture's classes and configs: in training, and when loaded.
ARCHITECTURES = (
    (
        autoencoder.BinaryTrainingSAE,
        autoencoder.BinaryTrainingSAEConfig,
        autoencoder.BinarySAE,
        autoencoder.BinarySAEConfig,
    ),
    (
        binary_entropy.BinaryEntropyTrainingSAE,
        binary_entropy.BinaryEntropyTrainingSAEConfig,
        autoencoder.BinarySAE,
        autoencoder.BinarySAEConfig,
    ),
    (
        transcoder.BinaryTranscoderTrainingSAE,
        transcoder.BinaryTranscoderTrainingSAEConfig,
        transcoder.BinaryTranscoder,
        transcoder.BinaryTranscoderConfig,
    ),
    (
        transcoder.TopKTranscoderTrainingSAE,
        transcoder.TopKTranscoderTrainingSAEConfig,
        transcoder.TopKTranscoder,
        transcoder.TopKTranscoderConfig,
    ),
)

_REGISTERED = "_sae_binary_ext_registered"


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent.

    If SAELens lacks a private name that they need, its own classes stay as they are, and each
    binary coder raises an error when it is made.
    """
    if hasattr(sae_lens, _REGISTERED):
        return
    for training_coder, training_config, coder, config in ARCHITECTURES:
        architecture = training_config.architecture()
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(architecture, training_coder, training_config)
        # Under this name too if the saved coder has another (binary_entropy), so that
        # SAE.load_from_disk reads training checkpoints.
        if architecture not in SAE_CLASS_REGISTRY:
            register_sae_class(architecture, coder, config)
    if HOST.is_usable():
        _resume_where_training_was()
        _keep_the_scale_of_a_checkpoint()
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


def _keep_the_scale_of_a_checkpoint() -> None:
    """A coder loaded from a checkpoint of a run under way keeps the scale it was trained in.

    SAELens' from_pretrained_path reads the weights alone, and the trainer would estimate the scale
    anew: for whitening, in other directions than those the weights were trained in.
    """
    stock_load = TrainingSAE.load_from_disk.__func__

    @functools.wraps(stock_load)
    def load_from_disk(
        cls: type[TrainingSAE[Any]], path: str | Path, *args: Any, **kwargs: Any
    ) -> TrainingSAE[Any]:
        coder = stock_load(cls, path, *args, **kwargs)
        if isinstance(coder, FirstBatchTrainingSAE):
            coder.scale = scale_beside(Path(path), coder.cfg.normalize_activations)
        return coder

    TrainingSAE.load_from_disk = classmethod(load_from_disk)  # pyright: ignore[reportAttributeAccessIssue]


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
            self.sae.give_scale_to(self.activation_scaler)

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
