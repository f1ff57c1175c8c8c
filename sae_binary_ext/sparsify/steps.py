"""The length of an optimizer's steps, in units of the activations that a coder is trained on.

sparsify's optimizers move each number by an absolute length, whatever the gradient's. An encoder
weight is as large as 1 / (deviation of the input), a decoder weight as the deviation of the target.
A step of the default length that suits activations of deviation 1 is far too long for decoder rows
where it is 0.02.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from sparsify import Trainer
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from sae_binary_ext.coding import sample_rows
from sae_binary_ext.sparsify.coder import BinarySparseCoder

logger = logging.getLogger(__name__)


def one_group_each(trainer: Trainer) -> None:
    """Give every parameter a group of its own in the optimizers, in the order of the coders.

    sparsify's muon takes its parameters from a set, whose order differs from run to run: a resumed
    run would give them each other's momentum.
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
    """Group the parameters of a new trainer as those of a checkpoint are.

    Args:
        trainer: as sparsify builds it.
        folder: of the checkpoint; one of an earlier version has sparsify's groups, one a coder.
    """
    saved = torch.load(folder / "optimizer_0.pt", map_location="cpu", weights_only=True, mmap=True)
    if len(saved["param_groups"]) > len(trainer.optimizers[0].param_groups):
        one_group_each(trainer)


def scale_steps(trainer: Trainer, coder: BinarySparseCoder, x: Tensor, y: Tensor) -> None:
    """Multiply the learning rates of a coder's parameters by the units these are in.

    Args:
        trainer: its optimizers have one group a parameter.
        coder: of the trainer.
        x: [tokens, d_in], of the first batch.
        y: [tokens, d_in], the target.
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
        "Standard deviation of the input %.3g, of the target %.3g: the default learning rate is "
        "taken in these units.",
        source,
        target,
    )


def _scale(
    trainer: Trainer, optimizer: Any, number: int, settings: dict[str, Any], unit: float
) -> None:
    settings["lr"] *= unit
    # Muon's decay is a share of the weight, whatever unit that is in.
    if "weight_decay" in settings:
        settings["weight_decay"] /= unit
    for scheduler in trainer.lr_schedulers:
        if scheduler.optimizer is optimizer:
            settings["initial_lr"] *= unit
            scheduler.base_lrs[number] *= unit


def _deviation(x: Tensor, group: ProcessGroup | None) -> float:
    """Standard deviation of a dimension over tokens, on average over dimensions and ranks.

    The mean of deviations, not the root of the mean square: a few dimensions far larger than all
    others, which language models have, would otherwise decide alone.
    """
    rows = sample_rows(x).to(torch.promote_types(x.dtype, torch.float32))
    rows = rows[rows.isfinite().all(-1)]
    deviation = rows.std(0, correction=0).mean() if len(rows) else rows.new_zeros(())
    if group is not None:
        dist.all_reduce(deviation, group=group)
        deviation /= dist.get_world_size(group)
    return deviation.item()
