"""Optimizer steps of sparsify's Trainer: their lengths, and where a resumed run goes on.

sparsify's optimizers move each weight by a length that does not depend on the gradient's. Encoder
weights are in units of 1 / (deviation of the input), decoder weights in units of the target's
deviation. The default length suits activations of deviation 1. It is far too long for decoder rows
of a target of deviation 0.02.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify import Trainer
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from sae_binary_ext.coding import sample_rows
from sae_binary_ext.sparsify.coder import BinarySparseCoder

logger = logging.getLogger(__name__)


def one_group_each(trainer: Trainer) -> None:
    """Give each parameter its own group in the optimizers, in the order of the coders.

    sparsify's muon takes parameters from a set, whose order differs from run to run. A resumed run
    would give one parameter the momentum of another.
    """
    order = [parameter for coder in trainer.saes.values() for parameter in coder.parameters()]
    place = {parameter: number for number, parameter in enumerate(order)}
    for optimizer in trainer.optimizers:
        groups: list[dict[str, Any]] = [
            {**group, "params": [parameter]}
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        groups.sort(key=lambda group: place[group["params"][0]])
        optimizer.param_groups[:] = groups
    for scheduler in trainer.lr_schedulers:
        groups = scheduler.optimizer.param_groups
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        scheduler.lr_lambdas = scheduler.lr_lambdas[:1] * len(groups)


def group_as_saved(trainer: Trainer, folder: Path) -> None:
    """Group a new trainer's parameters as in a checkpoint's folder.

    Checkpoints of earlier versions have sparsify's own groups, one for each coder.
    """
    saved = torch.load(folder / "optimizer_0.pt", map_location="cpu", weights_only=True, mmap=True)
    if len(saved["param_groups"]) > len(trainer.optimizers[0].param_groups):
        one_group_each(trainer)


def scale_steps(trainer: Trainer, coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Multiply the learning rate of each parameter of a coder by the parameter's unit.

    Args:
        trainer: its optimizers have one group for each parameter.
        coder: one of the trainer's.
        x: first batch [tokens, d_in].
        y: target [tokens, d_in].
    """
    if coder.start.scaled:
        return
    coder.start.scaled = True
    group = coder.progress.group
    source, target = _deviation(x, group), _deviation(y, group)
    if not 0 < source * target < float("inf"):
        return
    units = {
        "encoder.weight": 1 / source,
        "W_dec": target,
        "b_dec": target,
        "W_skip": target / source,
    }
    named = {parameter: name for name, parameter in coder.named_parameters()}
    for optimizer in trainer.optimizers:
        for number, settings in enumerate(optimizer.param_groups):
            unit = units.get(named.get(settings["params"][0], ""))
            if unit is not None:
                _scale(trainer, optimizer, number, settings, unit)
    logger.info(
        "The standard deviation of the input is %.3g, that of the target %.3g. The default "
        "learning rate is in these units.",
        source,
        target,
    )


def _scale(
    trainer: Trainer, optimizer: Any, number: int, settings: dict[str, Any], unit: float
) -> None:
    settings["lr"] *= unit
    # Muon's decay is lr x weight_decay, a share of the weight. The unit must not change it.
    if "weight_decay" in settings:
        settings["weight_decay"] /= unit
    for scheduler in trainer.lr_schedulers:
        if scheduler.optimizer is optimizer:
            settings["initial_lr"] *= unit
            scheduler.base_lrs[number] *= unit


def _deviation(x: Tensor, group: ProcessGroup | None) -> float:
    """Standard deviation over tokens, averaged over dimensions and ranks.

    In language models a few dimensions are far larger than all others. They would dominate a root
    mean square.
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
    for group, coder in zip(groups, trainer.saes.values(), strict=True):
        group["lr"] = 3e-3 / (coder.num_latents / 2**15) ** 0.5
    rates = sorted({group["lr"] for group in groups})
    logger.info("Learning rates of the binary coders: %s", [f"{rate:.2e}" for rate in rates])


def load_counters(trainer: Trainer, path: Path) -> None:
    """Load tokens since each latent fired, and best losses, of the coders of all seeds.

    sparsify looks for them by hookpoint, but the coders of several seeds have other names.
    """
    device = trainer.model.device
    for file in path.glob("rank_*_state.pt"):
        state = torch.load(file, map_location=device, weights_only=True)
        silent, best = state["num_tokens_since_fired"], state["best_loss"]
        trainer.num_tokens_since_fired.update({n: silent[n] for n in trainer.saes if n in silent})
        if isinstance(trainer.best_loss, dict) and isinstance(best, dict):
            trainer.best_loss.update({n: best[n] for n in trainer.saes if n in best})


def skip_trained_batch(trainer: Trainer) -> None:
    """Do not train on a batch twice.

    sparsify writes a periodic checkpoint after a batch's optimizer step, but before it counts the
    batch. It writes the checkpoint at the end of training after the count.
    """
    if trainer.lr_schedulers:
        optimizer_steps = trainer.lr_schedulers[0].last_epoch
    else:
        optimizer_steps = trainer.optimizers[0].param_groups[0].get("k", 0)
    trainer.global_step = max(trainer.global_step, optimizer_steps * trainer.cfg.grad_acc_steps)


def resume_schedule_free(trainer: Trainer) -> None:
    """Turn the averaged weights of a checkpoint back into those that training goes on from.

    A checkpoint holds the averaged weights of schedule-free SGD, and sparsify takes its next
    gradient at them.
    """
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ScheduleFreeWrapper):
            optimizer.train_mode = False
            optimizer.train()
