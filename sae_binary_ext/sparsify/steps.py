"""Batches and optimizer steps of sparsify's Trainer, and the state of a resumed run.

sparsify's optimizers move each weight by a length that does not depend on the gradient's length.
The default step suits activations of standard deviation 1. That step is far too long for decoder
rows if the target's deviation is 0.02. So the learning rate is scaled: for encoder weights by
1 / (deviation of the input), for decoder weights by the target's deviation.
"""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify import TrainConfig, Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle

from sae_binary_ext.coding import sample_rows, summed_variance
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.losses import TrainingProgress
from sae_binary_ext.training.derived import RunSize

logger = logging.getLogger(__name__)


class WholeBatch:
    """Tokens and variance of a whole batch. A coder sees one part at a time (micro_acc_steps)."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._mask = torch.ones(0, 0, dtype=torch.bool)
        self._tokens = torch.zeros(())
        self._variances: dict[str, Tensor] = {}

    def watch(self) -> list[RemovableHandle]:
        """Add hooks to the model before the Trainer does. The caller removes these hooks."""
        trainer, model = self._trainer, self._trainer.model
        handles = [model.register_forward_pre_hook(self._count)]
        # In float32 and wider, sparsify's own sum of squares is exact enough.
        if model.dtype.itemsize < torch.float32.itemsize and not trainer.cfg.distribute_modules:
            for name in trainer.local_hookpoints():
                module = model.base_model.get_submodule(name)
                handles.append(module.register_forward_hook(partial(self._measure, name)))
        return handles

    def inform(self, progress: TrainingProgress, hookpoint: str, tokens: int) -> None:
        """Tell a coder about the whole batch. The coder's part of the batch has `tokens` tokens."""
        progress.parts = self._tokens / max(tokens, 1)
        progress.variance = self._variances.get(hookpoint)

    def _count(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._mask = torch.isin(inputs[0], self._trainer.exclude_tokens, invert=True)
        self._tokens = self._mask.sum()
        if self._trainer.cfg.distribute_modules:
            dist.all_reduce(self._tokens)

    def _measure(self, hookpoint: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        self._variances[hookpoint] = summed_variance(outputs[self._mask], None)


def ranks() -> int:
    """Number of ranks of a distributed run, or 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def size_of_run(trainer: Trainer) -> RunSize:
    """Tokens of a Trainer's whole run and of one optimizer step, over all ranks."""
    dataset: Any = trainer.dataset
    row = len(dataset[0]["input_ids"]) * ranks() if len(dataset) else 0
    return RunSize(len(dataset) * row, trainer.cfg.batch_size * trainer.cfg.grad_acc_steps * row)


def set_dead_window(trainer: Trainer, coders: Iterable[BinarySparseCoder]) -> None:
    """Set a Trainer's dead_feature_threshold to the coders' dead_window_tokens.

    If the window is derived, it replaces sparsify's default alone. On each rank, sparsify counts
    the tokens of that rank.
    """
    is_default = trainer.cfg.dead_feature_threshold == TrainConfig.dead_feature_threshold
    windows = [
        coder.setting("dead_window_tokens")
        for coder in coders
        if coder.cfg.dead_window_tokens is not None or is_default
    ]
    if tokens := max(windows, default=0):
        trainer.cfg.dead_feature_threshold = max(1, round(tokens / ranks()))


def one_group_each(trainer: Trainer) -> None:
    """Give each parameter its own group in the optimizers, in the order of the coders.

    sparsify's muon takes parameters from a set, whose order differs from run to run. A resumed run
    would then give one parameter the momentum of another.
    """
    for optimizer in trainer.optimizers:
        own: dict[Tensor, dict[str, Any]] = {
            parameter: {**group, "params": [parameter]}
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        order = [parameter for coder in trainer.saes.values() for parameter in coder.parameters()]
        optimizer.param_groups[:] = [own[each] for each in order if each in own]
    for scheduler in trainer.lr_schedulers:
        groups = scheduler.optimizer.param_groups
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        scheduler.lr_lambdas = scheduler.lr_lambdas[:1] * len(groups)


def group_as_saved(trainer: Trainer, folder: Path) -> None:
    """Group a new trainer's parameters as in its checkpoint, which may have one group a coder."""
    saved = torch.load(folder / "optimizer_0.pt", map_location="cpu", weights_only=True, mmap=True)
    if len(saved["param_groups"]) > len(trainer.optimizers[0].param_groups):
        one_group_each(trainer)


def scale_steps(trainer: Trainer, coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Multiply the learning rate of each parameter of a coder by the parameter's unit.

    x is the first batch, y its target, both [tokens, d_in]. Each parameter must have its own group
    in the optimizers.
    """
    if coder.start.scaled:
        return
    coder.start.scaled = True
    group = coder.progress.group
    source, target = _deviation(x, group), _deviation(y, group)
    if not 0 < source * target < float("inf"):
        return
    units = {"encoder.weight": 1 / source, "W_dec": target, "b_dec": target}
    units["W_skip"] = target / source
    named = {parameter: name for name, parameter in coder.named_parameters()}
    for optimizer in trainer.optimizers:
        for number, settings in enumerate(optimizer.param_groups):
            if (unit := units.get(named.get(settings["params"][0], ""))) is None:
                continue
            settings["lr"] *= unit
            # Muon's decay of a weight, lr x weight_decay, is a share of it and must not change.
            if "weight_decay" in settings:
                settings["weight_decay"] /= unit
            for scheduler in trainer.lr_schedulers:
                if scheduler.optimizer is optimizer:
                    settings["initial_lr"] *= unit
                    scheduler.base_lrs[number] *= unit
    message = "The default learning rate is in these deviations: %.3g of input, %.3g of target."
    logger.info(message, source, target)


def _deviation(x: Tensor, group: ProcessGroup | None) -> float:
    """Standard deviation over tokens, averaged over dimensions and ranks.

    A root mean square would depend mostly on the few dimensions that are far larger than others.
    """
    rows = sample_rows(x).to(torch.promote_types(x.dtype, torch.float32))
    rows = rows[rows.isfinite().all(-1)]
    deviation = rows.std(0, correction=0).mean() if len(rows) else rows.new_zeros(())
    if group is not None:
        dist.all_reduce(deviation, group=group)
        deviation /= dist.get_world_size(group)
    return deviation.item()


def set_signum_rates(trainer: Trainer) -> None:
    """Give binary coders the first paper's learning rate, if the user gave none."""
    if trainer.cfg.lr is not None:
        return
    groups = trainer.optimizers[0].param_groups
    for group, (name, coder) in zip(groups, trainer.saes.items(), strict=True):
        group["lr"] = 3e-3 / (coder.num_latents / 2**15) ** 0.5
        logger.info("%s: the learning rate is %.2e.", name, group["lr"])


def load_counters(trainer: Trainer, path: Path) -> None:
    """Load best losses, and how many tokens ago each latent fired, by the coders' names.

    sparsify looks them up by hookpoint, but the coders of several seeds have other names.
    """
    device = trainer.model.device
    for file in path.glob("rank_*_state.pt"):
        state = torch.load(file, map_location=device, weights_only=True)
        silent, best = state["num_tokens_since_fired"], state["best_loss"]
        trainer.num_tokens_since_fired.update({n: silent[n] for n in trainer.saes if n in silent})
        if isinstance(trainer.best_loss, dict) and isinstance(best, dict):
            trainer.best_loss.update({n: best[n] for n in trainer.saes if n in best})


def skip_trained_batch(trainer: Trainer) -> None:
    """Skip the batch that a periodic checkpoint was trained on but does not count yet."""
    optimizer_steps = trainer.optimizers[0].param_groups[0].get("k", 0)
    if trainer.lr_schedulers:
        optimizer_steps = trainer.lr_schedulers[0].last_epoch
    trainer.global_step = max(trainer.global_step, optimizer_steps * trainer.cfg.grad_acc_steps)


def resume_schedule_free(trainer: Trainer) -> None:
    """Turn schedule-free SGD's averaged weights in a checkpoint into the weights that it trains."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ScheduleFreeWrapper):
            optimizer.train_mode = False
            optimizer.train()
