"""Makes sparsify build, load and train binary coders. This file makes all changes to sparsify.

sparsify has no registry: its Trainer and its loaders name SparseCoder and SparseCoderConfig. Each
function replaced below calls sparsify's own, and does more only for binary activations.
"""

import functools
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sparsify
import sparsify.trainer
import torch
from simple_parsing.helpers.serialization import register_decoding_fn
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import distributed as dist
from torch import nn
from transformers import PreTrainedModel

from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from sae_binary_ext.registration import Host
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify import steps
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.config import (
    BinarySparseCoderConfig,
    CommandLineCoderConfig,
    check_activation,
)
from sae_binary_ext.sparsify.starting import is_stock, prepare_start
from sae_binary_ext.sparsify.trainer_state import TrainingProgress, WholeBatch
from sae_binary_ext.training.untouched import InitialParameters

logger = logging.getLogger(__name__)

_REGISTERED = "_sae_binary_ext_registered"
# The private names of sparsify, all used in this file.
HOST = Host(
    module="sparsify",
    package="eai-sparsify",
    oldest="1.3.3",
    below="2",
    newest="1.3.3",
    private=("sparsify.trainer:Trainer._checkpoint", "sparsify.trainer:DDP"),
)


def register() -> None:
    """Teach sparsify the binary coders. A second call does nothing.

    If sparsify lacks a private name that they need, its Trainer is not changed, and making a binary
    coder raises an error.
    """
    if hasattr(sparsify, _REGISTERED):
        return
    _build_binary_coders()
    _read_binary_configs()
    _offer_binary_fields()
    if HOST.is_usable():
        _check_before_building()
        _inform_while_training()
        _resume_where_training_was()
        _save_checkpoints_at_once()
        _save_no_spoilt_coder()
        _take_losses_over_all_ranks()
    setattr(sparsify, _REGISTERED, True)


def _build_binary_coders() -> None:
    """SparseCoder(d_in, config) makes a BinarySparseCoder if the config's activation is binary."""

    def new(cls: type[SparseCoder], *args: Any, **kwargs: Any) -> SparseCoder:
        cfg = kwargs.get("cfg", args[1] if len(args) > 1 else None)
        _check_config(cfg)
        if isinstance(cfg, BinarySparseCoderConfig) and cfg.is_binary():
            HOST.check()
            cls = BinarySparseCoder if cls is SparseCoder else cls
        return object.__new__(cls)

    SparseCoder.__new__ = staticmethod(new)  # pyright: ignore[reportAttributeAccessIssue]


def _read_binary_configs() -> None:
    """SparseCoderConfig.from_dict, which loaders call, chooses the class by the activation."""
    stock_from_dict = SparseCoderConfig.from_dict.__func__

    def from_dict(
        cls: type[SparseCoderConfig], obj: dict[str, Any], drop_extra_fields: bool | None = None
    ) -> SparseCoderConfig:
        activation = obj.get("activation", SparseCoderConfig.activation)
        if activation in SELECTION_OF_ACTIVATION:
            return BinarySparseCoderConfig.from_dict(obj, drop_extra_fields)
        check_activation(activation)
        return stock_from_dict(cls, obj, drop_extra_fields)

    SparseCoderConfig.from_dict = classmethod(from_dict)  # pyright: ignore
    # TrainConfig.from_dict decodes its field sae by these functions.
    for config in (SparseCoderConfig, CommandLineCoderConfig):
        register_decoding_fn(config, SparseCoderConfig.from_dict, overwrite=True)


def _offer_binary_fields() -> None:
    """The command line takes the binary fields too: it reads the type of TrainConfig.sae."""
    TrainConfig.__dataclass_fields__["sae"].type = CommandLineCoderConfig
    TrainConfig.__annotations__["sae"] = CommandLineCoderConfig
    stock_post_init = TrainConfig.__post_init__

    @functools.wraps(stock_post_init)
    def post_init(self: TrainConfig) -> None:
        stock_post_init(self)
        _check_config(self.sae)
        if isinstance(self.sae, BinarySparseCoderConfig):
            self.sae = self.sae.for_training()

    TrainConfig.__post_init__ = post_init


def _check_before_building() -> None:
    """The Trainer refuses settings that binary coders cannot have, and sets their learning rate."""
    stock_init = Trainer.__init__

    @functools.wraps(stock_init)
    def init(self: Trainer, cfg: TrainConfig, *args: Any, **kwargs: Any) -> None:
        if isinstance(cfg.sae, BinarySparseCoderConfig):
            _check_k_decay(cfg.sae, cfg.k_decay_steps)
            _check_seeds(cfg)
        stock_init(self, cfg, *args, **kwargs)
        if not isinstance(cfg.sae, BinarySparseCoderConfig):
            return
        if cfg.optimizer == "signum":
            steps.set_signum_rates(self)
        if isinstance(self.best_loss, dict):
            # sparsify names best losses by hookpoint, but save_best looks them up by coder.
            self.best_loss = dict.fromkeys(self.saes, float("inf"))
        for name, coder in _binary_coders(self).items():
            coder.start.initial = InitialParameters(coder)
            if cfg.finetune is not None:
                coder.start.takes_stock = is_stock(Path(cfg.finetune, name))
                coder.start.of_binary_file = not coder.start.takes_stock

    Trainer.__init__ = init


def _inform_while_training() -> None:
    """The Trainer tells binary coders its step before each forward pass."""
    stock_fit = Trainer.fit

    @functools.wraps(stock_fit)
    def fit(self: Trainer) -> None:
        binary = _binary_coders(self)
        whole = WholeBatch(self)
        handles = whole.watch() if binary and self.cfg.micro_acc_steps > 1 else []
        for name, coder in binary.items():
            inform = functools.partial(_inform, self, name, whole)
            handles.append(coder.register_forward_pre_hook(inform, with_kwargs=True))
            if self.global_step == 0:
                prepare_start(name, coder)
        if binary and self.global_step == 0:
            steps.one_group_each(self)
        try:
            stock_fit(self)
        finally:
            for handle in handles:
                handle.remove()
            for coder in binary.values():
                coder.progress = TrainingProgress()

    Trainer.fit = fit


def _resume_where_training_was() -> None:
    """A resumed run of binary coders trains the same weights as an unbroken run."""
    stock_load = Trainer.load_state

    @functools.wraps(stock_load)
    def load_state(self: Trainer, path: str) -> None:
        if not isinstance(self.cfg.sae, BinarySparseCoderConfig):
            stock_load(self, path)
            return
        steps.group_as_saved(self, Path(path))
        stock_load(self, path)
        steps.load_counters(self, Path(path))
        steps.skip_trained_batch(self)
        steps.resume_schedule_free(self)

    Trainer.load_state = load_state


def _save_checkpoints_at_once() -> None:
    """A checkpoint replaces the old one at once: a killed save leaves no mixture of two steps."""
    stock_checkpoint = Trainer._checkpoint  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(stock_checkpoint)
    def checkpoint(self: Trainer, saes: dict[str, SparseCoder], path: str, rank_zero: bool) -> None:
        # With distribute_modules each rank writes coders of its own, and all meet only at the end.
        if not isinstance(self.cfg.sae, BinarySparseCoderConfig) or self.cfg.distribute_modules:
            stock_checkpoint(self, saes, path, rank_zero)
            return
        with replacing(Path(path)) as new:
            stock_checkpoint(self, saes, str(new), rank_zero)

    Trainer._checkpoint = checkpoint  # pyright: ignore[reportPrivateUsage]


def _save_no_spoilt_coder() -> None:
    """Saving a coder with a parameter that is not finite is an error, also for save_best.

    save_best itself would skip this coder without a word, because its loss NaN is never the lowest.
    """
    stock_save, stock_save_best = Trainer.save, Trainer.save_best

    @functools.wraps(stock_save)
    def save(self: Trainer) -> None:
        _check_saveable(self)
        stock_save(self)

    @functools.wraps(stock_save_best)
    def save_best(self: Trainer, avg_loss: float | dict[str, float]) -> None:
        _check_saveable(self)
        stock_save_best(self, avg_loss)

    Trainer.save, Trainer.save_best = save, save_best


def _check_saveable(trainer: Trainer) -> None:
    for name, coder in _binary_coders(trainer).items():
        try:
            coder.check_saveable()
        except ValueError as error:
            error.add_note(f"This is coder {name}. Nothing was saved; earlier saves are kept.")
            raise


def _take_losses_over_all_ranks() -> None:
    """Binary coders in DistributedDataParallel take losses over the tokens of all ranks."""
    stock_ddp = sparsify.trainer.DDP

    def ddp(module: nn.Module, **kwargs: Any) -> nn.Module:
        if isinstance(module, BinarySparseCoder):
            module.progress.group = dist.group.WORLD
            # sparsify names a GPU even on the CPU, and DDP refuses that.
            if module.device.type == "cpu":
                kwargs.pop("device_ids", None)
        return stock_ddp(module, **kwargs)

    sparsify.trainer.DDP = ddp  # pyright: ignore[reportPrivateImportUsage]


def _check_k_decay(sae: BinarySparseCoderConfig, k_decay_steps: int) -> None:
    if k_decay_steps and sae.is_binary() and sae.code_rule().kind.groups:
        raise ValueError(
            f"k_decay_steps={k_decay_steps} with activation={sae.activation!r}: k is the number "
            "of groups. It must divide the number of latents, so it cannot decay. Give 0."
        )


def _check_config(cfg: object) -> None:
    """Raise ValueError if sparsify's own config class has a binary activation."""
    activation = getattr(cfg, "activation", None)
    if activation in SELECTION_OF_ACTIVATION and not isinstance(cfg, BinarySparseCoderConfig):
        raise ValueError(
            f"activation={activation!r} in a {type(cfg).__name__}, which lacks the fields of "
            "binary activations. Use sae_binary_ext.sparsify.BinarySparseCoderConfig("
            f"activation={activation!r}, ...)."
        )


def _check_seeds(cfg: TrainConfig) -> None:
    if cfg.loss_fn in ("ce", "kl") and len(cfg.init_seeds) > 1:
        raise ValueError(
            f"init_seeds={cfg.init_seeds} with loss_fn={cfg.loss_fn!r}: only one coder can take a "
            "module's place when training minimises the model's loss. The others would be saved "
            "untrained. Give one seed in each run."
        )


def _binary_coders(trainer: Trainer) -> dict[str, BinarySparseCoder]:
    return {
        name: coder for name, coder in trainer.saes.items() if isinstance(coder, BinarySparseCoder)
    }


def _inform(
    trainer: Trainer,
    name: str,
    whole: WholeBatch,
    coder: nn.Module,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    if not isinstance(coder, BinarySparseCoder):
        return
    x = inputs[0] if inputs else named["x"]
    y = inputs[1] if len(inputs) > 1 else named.get("y")
    cfg, progress = trainer.cfg, coder.progress
    progress.step = trainer.global_step // cfg.grad_acc_steps
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    progress.noise_seed = trainer.global_step * ranks + rank
    # sparsify divides the model's loss by grad_acc_steps, so losses added to its gradient are too.
    end_to_end = cfg.loss_fn in ("ce", "kl")
    progress.regulariser_share = 1 / cfg.grad_acc_steps if end_to_end else 0.0
    if cfg.micro_acc_steps > 1:
        whole.inform(progress, name.partition("/")[0], len(x))
    progress.first_batch = trainer.global_step == 0
    if progress.first_batch and len(x):
        coder.start.restore(coder)
        # The first paper's start (initial_firing_rate=0) keeps sparsify's absolute lengths.
        if cfg.lr is None and coder.cfg.initial_firing_rate != 0:
            steps.scale_steps(trainer, coder, x, x if y is None else y)


@contextmanager
def cpu_instead_of_cuda() -> Generator[None]:
    """Let command lines of sparsify and delphi, which name CUDA, run on the CPU."""
    stock_init, stock_load = dist.init_process_group, PreTrainedModel.from_pretrained.__func__

    def init_process_group(backend: str, **kwargs: Any) -> None:
        kwargs.pop("device_id", None)
        stock_init("gloo", **kwargs)

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        if "device_map" in kwargs:
            kwargs["device_map"] = {"": "cpu"}
        return stock_load(cls, *args, **kwargs)

    def set_device(device: int) -> None:
        pass

    with (
        patch.object(torch.cuda, "set_device", set_device),
        patch.object(dist, "init_process_group", init_process_group),
        patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)),
    ):
        yield
