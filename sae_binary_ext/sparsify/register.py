"""Makes sparsify build, load and train binary coders. This file makes all changes to sparsify.

sparsify has no registry: its Trainer and its loaders name SparseCoder and SparseCoderConfig. Each
function with an argument `stock` replaces a function of sparsify, which it gets as `stock` and
calls. The replacement does more than sparsify's function only for binary activations.
"""

import functools
from collections.abc import Callable, Generator
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

from sae_binary_ext.checks import check_choice
from sae_binary_ext.coding.paper_names import ACTIVATIONS, SELECTION_OF_ACTIVATION
from sae_binary_ext.registration import Host
from sae_binary_ext.saving import replacing
from sae_binary_ext.sparsify import ending, starting, steps
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig, CommandLineCoderConfig
from sae_binary_ext.sparsify.losses import TrainingProgress
from sae_binary_ext.sparsify.refined_coder import RefinedSparseCoder
from sae_binary_ext.training.one_pass import update_in_one_pass
from sae_binary_ext.training.untouched import InitialParameters

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
Stock = Callable[..., Any]


def register() -> None:
    """Make sparsify build, load and train binary coders. A second call does nothing.

    If sparsify lacks a private name that binary coders need, its Trainer is not changed, and making
    a binary coder raises an error.
    """
    if hasattr(sparsify, _REGISTERED):
        return
    SparseCoder.__new__ = staticmethod(_new)  # pyright: ignore[reportAttributeAccessIssue]
    _read_binary_configs()
    _change(TrainConfig, "__post_init__", _check_config_of_training)
    if HOST.is_usable():
        _change(Trainer, "__init__", _build_trainer)
        _change(Trainer, "fit", _fit)
        _change(Trainer, "load_state", _load_state)
        _change(Trainer, "_checkpoint", _write_checkpoint)
        _change(Trainer, "save", _save)
        _change(Trainer, "save_best", _save)
        _change(sparsify.trainer, "DDP", _share_losses)
    setattr(sparsify, _REGISTERED, True)


def _change(owner: Any, name: str, changed: Callable[..., Any]) -> None:
    """Replace a function of sparsify by `changed`, which gets the replaced function first."""
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def function(*args: Any, **kwargs: Any) -> Any:
        return changed(stock, *args, **kwargs)

    setattr(owner, name, function)


def _new(cls: type[SparseCoder], *args: Any, **kwargs: Any) -> SparseCoder:
    """SparseCoder(d_in, config) makes a coder of this package if the activation is binary."""
    cfg = kwargs.get("cfg", args[1] if len(args) > 1 else None)
    _check_class(cfg)
    if isinstance(cfg, BinarySparseCoderConfig) and cfg.is_binary():
        HOST.check()
        own = RefinedSparseCoder if cfg.refine_passes else BinarySparseCoder
        cls = own if cls in (SparseCoder, BinarySparseCoder) else cls
    return object.__new__(cls)


def _check_class(cfg: object) -> None:
    """Raise ValueError if sparsify's own config class has a binary activation."""
    activation = getattr(cfg, "activation", None)
    if activation in SELECTION_OF_ACTIVATION and not isinstance(cfg, BinarySparseCoderConfig):
        raise ValueError(
            f"activation={activation!r} in a {type(cfg).__name__}, which lacks the fields of "
            "binary activations. Use sae_binary_ext.sparsify.BinarySparseCoderConfig("
            f"activation={activation!r}, ...)."
        )


def _read_binary_configs() -> None:
    """Make loaders and the command line choose the class of a config by its activation."""
    stock = SparseCoderConfig.from_dict.__func__

    def from_dict(
        cls: type[SparseCoderConfig], obj: dict[str, Any], drop_extra_fields: bool | None = None
    ) -> SparseCoderConfig:
        activation = obj.get("activation", SparseCoderConfig.activation)
        if activation in SELECTION_OF_ACTIVATION:
            return BinarySparseCoderConfig.from_dict(obj, drop_extra_fields)
        check_choice(ACTIVATIONS, activation=activation)
        return stock(cls, obj, drop_extra_fields)

    SparseCoderConfig.from_dict = classmethod(from_dict)  # pyright: ignore
    # TrainConfig.from_dict decodes its field `sae` with these functions.
    for kind in (SparseCoderConfig, CommandLineCoderConfig):
        register_decoding_fn(kind, SparseCoderConfig.from_dict, overwrite=True)
    # The command line reads the type of TrainConfig.sae, and so takes the binary fields too.
    TrainConfig.__dataclass_fields__["sae"].type = CommandLineCoderConfig
    TrainConfig.__annotations__["sae"] = CommandLineCoderConfig


def _check_config_of_training(stock: Stock, train_config: TrainConfig) -> None:
    stock(train_config)
    _check_class(train_config.sae)
    if isinstance(train_config.sae, BinarySparseCoderConfig):
        train_config.sae = train_config.sae.for_training()


def _build_trainer(
    stock: Stock, trainer: Trainer, cfg: TrainConfig, *args: Any, **kwargs: Any
) -> None:
    """Refuse settings that binary coders cannot have, and note each coder's initial parameters."""
    if not isinstance(cfg.sae, BinarySparseCoderConfig):
        stock(trainer, cfg, *args, **kwargs)
        return
    if cfg.k_decay_steps and cfg.sae.is_binary() and cfg.sae.code_rule().kind.groups:
        raise ValueError(
            f"k_decay_steps={cfg.k_decay_steps} with activation={cfg.sae.activation!r}: k is the "
            "number of groups. It must divide the number of latents, so it cannot decay. Give 0."
        )
    if cfg.loss_fn in ("ce", "kl") and len(cfg.init_seeds) > 1:
        raise ValueError(
            f"init_seeds={cfg.init_seeds} with loss_fn={cfg.loss_fn!r}: only one coder can take a "
            "module's place when training minimises the model's loss. The others would be saved "
            "untrained. Give one seed in each run."
        )
    ending.check_refit(cfg)
    if cfg.loss_fn in ("ce", "kl") and cfg.sae.is_binary() and cfg.sae.matryoshka:
        raise ValueError(
            f"matryoshka=True with loss_fn={cfg.loss_fn!r}: only the FVU has nested groups, and "
            "training would minimise the model's loss alone. Leave matryoshka out, or give fvu."
        )
    stock(trainer, cfg, *args, **kwargs)
    if cfg.optimizer == "signum":
        steps.set_signum_rates(trainer)
    for optimizer in trainer.optimizers:
        update_in_one_pass(optimizer)
    if isinstance(trainer.best_loss, dict):
        # sparsify stores best losses by hookpoint, but save_best looks them up by coder name.
        trainer.best_loss = dict.fromkeys(trainer.saes, float("inf"))
    for name, coder in _binary_coders(trainer).items():
        coder.start.initial = InitialParameters(coder)
        if cfg.finetune is not None:
            coder.start.takes_stock = starting.is_stock(Path(cfg.finetune, name))
            coder.start.of_binary_file = not coder.start.takes_stock


def _binary_coders(trainer: Trainer) -> dict[str, BinarySparseCoder]:
    return {
        name: coder for name, coder in trainer.saes.items() if isinstance(coder, BinarySparseCoder)
    }


def _fit(stock: Stock, trainer: Trainer) -> None:
    """Tell binary coders the run's size and each step before it. Refit them at the end."""
    binary = _binary_coders(trainer)
    for name, coder in binary.items():
        coder.run = steps.size_of_run(trainer)
        coder.log_derived(name)
    steps.set_dead_window(trainer, binary.values())
    whole = steps.WholeBatch(trainer)
    handles = whole.watch() if binary and trainer.cfg.micro_acc_steps > 1 else []
    for name, coder in binary.items():
        inform = functools.partial(_inform, trainer, name, coder, whole)
        handles.append(coder.register_forward_pre_hook(inform, with_kwargs=True))
        if trainer.global_step == 0:
            starting.prepare_start(name, coder)
    if binary and trainer.global_step == 0:
        steps.one_group_each(trainer)
    try:
        stock(trainer)
    finally:
        for handle in handles:
            handle.remove()
        for coder in binary.values():
            coder.progress = TrainingProgress()
    ending.refit_at_end(trainer, binary)


def _inform(
    trainer: Trainer, name: str, coder: BinarySparseCoder, whole: steps.WholeBatch, *arguments: Any
) -> None:
    _, inputs, named = arguments
    x = inputs[0] if inputs else named["x"]
    y = inputs[1] if len(inputs) > 1 else named.get("y")
    cfg, progress = trainer.cfg, coder.progress
    progress.step = trainer.global_step // cfg.grad_acc_steps
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    progress.noise_seed = trainer.global_step * ranks + rank
    # sparsify divides the model's loss by grad_acc_steps, so divide losses added to its gradient.
    progress.regulariser_share = 1 / cfg.grad_acc_steps if cfg.loss_fn in ("ce", "kl") else 0.0
    if cfg.micro_acc_steps > 1:
        whole.inform(progress, name.partition("/")[0], len(x))
    progress.first_batch = trainer.global_step == 0
    if progress.first_batch and len(x):
        coder.start.restore(coder)
        # With the first paper's start (initial_firing_rate=0), sparsify's learning rate stays.
        if cfg.lr is None and coder.cfg.initial_firing_rate != 0:
            steps.scale_steps(trainer, coder, x, x if y is None else y)


def _load_state(stock: Stock, trainer: Trainer, path: str) -> None:
    """Resume a run so that binary coders end with the weights of an uninterrupted run."""
    if not isinstance(trainer.cfg.sae, BinarySparseCoderConfig):
        stock(trainer, path)
        return
    steps.group_as_saved(trainer, Path(path))
    stock(trainer, path)
    steps.load_counters(trainer, Path(path))
    steps.skip_trained_batch(trainer)
    steps.resume_schedule_free(trainer)


def _write_checkpoint(
    stock: Stock, trainer: Trainer, saes: dict[str, SparseCoder], path: str, rank_zero: bool
) -> None:
    """Replace the old checkpoint at once: a killed save leaves no mixture of two steps."""
    # With distribute_modules each rank writes its own coders, and waits for others only at the end.
    if not isinstance(trainer.cfg.sae, BinarySparseCoderConfig) or trainer.cfg.distribute_modules:
        stock(trainer, saes, path, rank_zero)
        return
    with replacing(Path(path)) as new:
        stock(trainer, saes, str(new), rank_zero)


def _save(stock: Stock, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
    """Raise ValueError if a parameter is not finite, in save and in save_best.

    sparsify's save_best would silently skip the coder, because its loss, NaN, is never the lowest.
    """
    for name, coder in _binary_coders(trainer).items():
        try:
            coder.check_saveable()
        except ValueError as error:
            error.add_note(f"This is coder {name}. Nothing was saved; earlier saves are kept.")
            raise
    stock(trainer, *args, **kwargs)


def _share_losses(stock: Stock, module: nn.Module, **kwargs: Any) -> nn.Module:
    """Let binary coders in DistributedDataParallel take losses over the tokens of all ranks."""
    if isinstance(module, BinarySparseCoder):
        module.progress.group = dist.group.WORLD
        # sparsify passes the id of a GPU even on the CPU, and DDP refuses it.
        if module.device.type == "cpu":
            kwargs.pop("device_ids", None)
    return stock(module, **kwargs)


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

    with (
        patch.object(torch.cuda, "set_device"),
        patch.object(dist, "init_process_group", init_process_group),
        patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)),
    ):
        yield
