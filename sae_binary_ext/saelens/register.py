"""Registers the binary architectures with SAELens, and replaces methods of SAELens."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sae_lens
from sae_lens import registry
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_binary_ext.saelens import autoencoder, refined, refitting, resuming, transcoder
from sae_binary_ext.saelens import binary_entropy as entropy
from sae_binary_ext.saelens.first_batch import FirstBatchTrainingSAE
from sae_binary_ext.saelens.pairs import FiniteScaler
from sae_binary_ext.saelens.private import HOST
from sae_binary_ext.saving import replacing
from sae_binary_ext.training.derived import DerivesSettings, RunSize
from sae_binary_ext.training.one_pass import update_in_one_pass

_BINARY = (autoencoder.BinarySAE, autoencoder.BinarySAEConfig)
# For each architecture: class and config for training, class and config of the saved coder.
ARCHITECTURES = (
    (autoencoder.BinaryTrainingSAE, autoencoder.BinaryTrainingSAEConfig, *_BINARY),
    (entropy.BinaryEntropyTrainingSAE, entropy.BinaryEntropyTrainingSAEConfig, *_BINARY),
    (
        refined.RefinedTrainingSAE,
        refined.RefinedTrainingSAEConfig,
        refined.RefinedSAE,
        refined.RefinedSAEConfig,
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
Trainer = SAETrainer[Any, Any]
# An original method of SAELens, which we replace.
Stock = Callable[..., Any]


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent.

    If SAELens lacks a private name that this package needs, SAELens' own classes stay unchanged.
    The creation of a binary coder then raises an error.
    """
    if hasattr(sae_lens, _REGISTERED):
        return
    for training_coder, training_config, coder, config in ARCHITECTURES:
        architecture = training_config.architecture()
        if architecture not in registry.SAE_TRAINING_CLASS_REGISTRY:
            registry.register_sae_training_class(architecture, training_coder, training_config)
        # Architecture binary_entropy saves coders as "binary". Its own name is registered here too,
        # so that SAE.load_from_disk reads its training checkpoints.
        if architecture not in registry.SAE_CLASS_REGISTRY:
            registry.register_sae_class(architecture, coder, config)
    if HOST.is_usable():
        _replace(SAETrainer, "save_trainer_state", _save_trainer_state)
        _replace(SAETrainer, "load_trainer_state", _load_trainer_state)
        _replace(SAETrainer, "__init__", _start_trainer)
        _replace(SAETrainer, "step", _step)
        _replace(SAETrainer, "fit", _fit)
        _replace(MultiSAETrainer, "fit", _fit)
        _replace(SAETrainer, "save_checkpoint", _save_checkpoint)
        _replace(MultiSAETrainer, "save_checkpoint", _save_checkpoint)
        _replace(TrainingSAE, "load_from_disk", _load_from_disk)
    setattr(sae_lens, _REGISTERED, True)


def _replace(owner: type, name: str, new: Callable[..., Any]) -> None:
    """Replace a method or classmethod by new, which gets the stock function as first argument."""
    found = getattr(owner, name)
    stock = getattr(found, "__func__", found)

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return new(stock, self, *args, **kwargs)

    setattr(owner, name, method if found is stock else classmethod(method))


def _save_trainer_state(stock: Stock, trainer: Trainer, checkpoint_path: Path) -> None:
    """For our coders, add the random state and the folded activation scale to a checkpoint."""
    if not isinstance(trainer.sae, FirstBatchTrainingSAE):
        stock(trainer, checkpoint_path)
        return
    with replacing(checkpoint_path) as new:
        stock(trainer, new)
        resuming.save_random_state(new)
        resuming.save_folded_scale(new, trainer.sae)


def _load_trainer_state(stock: Stock, trainer: Trainer, checkpoint_path: Path | str) -> None:
    if not isinstance(trainer.sae, FirstBatchTrainingSAE):
        stock(trainer, checkpoint_path)
        return
    folded = resuming.folded_scale(Path(checkpoint_path), trainer.sae.cfg)
    stock(trainer, checkpoint_path)
    if folded is not None:
        folded.give_to(trainer.activation_scaler)
    # SAELens writes periodic checkpoints after an optimizer step but before it counts that step. So
    # the schedules would lag by one step.
    trainer.n_training_steps = trainer.lr_scheduler.last_epoch
    resuming.load_random_state(Path(checkpoint_path))


def _start_trainer(
    stock: Stock, trainer: Trainer, cfg: SAETrainerConfig, sae: Any, *args: Any, **kwargs: Any
) -> None:
    """For our coders, derive settings, take finite tokens for the scale, and set Adam's pass."""
    if isinstance(sae, DerivesSettings):
        sae.run = RunSize(cfg.total_training_samples, cfg.train_batch_size_samples)
        cfg = _derived(cfg, sae)
    stock(trainer, cfg, sae, *args, **kwargs)
    if isinstance(trainer.sae, FirstBatchTrainingSAE):
        skips = trainer.sae.cfg.skip_non_finite
        trainer.activation_scaler = FiniteScaler(skip_non_finite=skips)
        trainer.sae.give_scale_to(trainer.activation_scaler)
        update_in_one_pass(trainer.optimizer)


def _derived(cfg: SAETrainerConfig, sae: Any) -> SAETrainerConfig:
    """SAELens' config with the window and schedule of a coder, unless the user has set others.

    A value of SAELens' config counts as set by the user if it is not SAELens' default.
    """
    changes: dict[str, int] = {}
    tokens, share = sae.setting("dead_window_tokens"), sae.setting("lr_decay_share")
    explicit = sae.cfg.dead_window_tokens is not None
    if tokens and (explicit or cfg.dead_feature_window == SAETrainerConfig.dead_feature_window):
        changes["dead_feature_window"] = max(1, round(tokens / cfg.train_batch_size_samples))
    if share and cfg.lr_scheduler_name == "constant" and not cfg.lr_decay_steps:
        changes["lr_decay_steps"] = round(share * cfg.total_training_steps)
    return replace(cfg, **changes) if changes else cfg


def _step(stock: Stock, trainer: Trainer, batch: Tensor) -> TrainStepOutput:
    """For our coders, count only the tokens trained on. SAELens counts the whole batch."""
    before = trainer.n_frac_active_samples
    output = stock(trainer, batch)
    if isinstance(trainer.sae, FirstBatchTrainingSAE):
        trainer.n_frac_active_samples = before + len(output.sae_in)
    return output


def _fit(stock: Stock, trainer: Any) -> Any:
    """Log what was derived, and refit decoders at the end. Checkpoints keep trained decoders."""
    several = isinstance(trainer, MultiSAETrainer)
    coders = trainer.saes if several else {trainer.sae.cfg.architecture(): trainer.sae}
    for name, coder in coders.items():
        if isinstance(coder, DerivesSettings):
            coder.log_derived(name)
    trained = stock(trainer)
    refitting.refit_at_end(trainer)
    return trained


def _save_checkpoint(stock: Stock, trainer: Any, *args: Any, **kwargs: Any) -> None:
    """Raise an error before writing a checkpoint if one of our coders is not finite."""
    saes = trainer.saes.values() if isinstance(trainer, MultiSAETrainer) else (trainer.sae,)
    for sae in saes:
        if isinstance(sae, FirstBatchTrainingSAE):
            sae.check_saveable()
    stock(trainer, *args, **kwargs)


def _load_from_disk(stock: Stock, cls: Any, path: str | Path, *args: Any, **kwargs: Any) -> Any:
    """Let our coders loaded from a training checkpoint keep the scale they were trained in."""
    # SAELens' from_pretrained_path reads only the weights, and its trainer estimates a new scale. A
    # new whitening has other axes than the whitening that the weights were trained with.
    coder = stock(cls, path, *args, **kwargs)
    if isinstance(coder, FirstBatchTrainingSAE):
        coder.scale = resuming.scale_beside(Path(path), coder.cfg.normalize_activations)
    return coder
