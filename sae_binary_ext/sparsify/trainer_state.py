"""What sparsify's Trainer knows and a coder in training needs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sparsify import Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle

from sae_binary_ext.coding import summed_variance


@dataclass
class TrainingProgress:
    """State of the Trainer. register.py keeps it up to date.

    Attributes:
        step: number of optimizer steps done.
        group: the ranks that share a batch (DistributedDataParallel), or None.
        regulariser_share: weight of the losses on codes (entropy, covariance, dense latents) in the
            gradient of the reconstruction. Training on the model's loss (ce, kl) sets it. It is 0
            if training minimises the FVU, which then carries these losses.
        first_batch: the Trainer is at its first batch.
        fit_start: set the initial parameters on the next batch.
        parts: the batch's size over that of its part (micro_acc_steps), a number or a scalar. The
            losses on codes are divided by it, as the FVU is.
        variance: summed over the tokens of the whole batch, a scalar. None if sparsify's own value
            is exact enough, or if the part is the batch.
        noise_seed: seed of this batch's samples (gumbel_binary). sparsify saves no random state, so
            a resumed run needs it to draw the same samples. None draws from torch's own state.
    """

    step: int = 0
    group: ProcessGroup | None = None
    regulariser_share: float = 0.0
    first_batch: bool = False
    fit_start: bool = False
    parts: float | Tensor = 1.0
    variance: Tensor | None = None
    noise_seed: int | None = None


class WholeBatch:
    """Tokens and variance of a Trainer's batch; coders see one part at a time (micro_acc_steps)."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._mask = torch.ones(0, 0, dtype=torch.bool)
        self._tokens = torch.zeros(())
        self._variances: dict[str, Tensor] = {}

    def watch(self) -> list[RemovableHandle]:
        """Hook the model before the Trainer does. The caller removes the hooks."""
        model = self._trainer.model
        handles = [model.register_forward_pre_hook(self._count)]
        # In float32 and wider, sparsify's own sum of squares is exact enough.
        if model.dtype.itemsize < torch.float32.itemsize and not self._distributed:
            for name in self._trainer.local_hookpoints():
                module = model.base_model.get_submodule(name)
                handles.append(module.register_forward_hook(partial(self._measure, name)))
        return handles

    def inform(self, progress: TrainingProgress, hookpoint: str, tokens: int) -> None:
        """Tell a coder of the batch that its part, of this many tokens, belongs to."""
        progress.parts = self._tokens / max(tokens, 1)
        progress.variance = self._variances.get(hookpoint)

    @property
    def _distributed(self) -> bool:
        return self._trainer.cfg.distribute_modules

    def _count(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._mask = torch.isin(inputs[0], self._trainer.exclude_tokens, invert=True)
        self._tokens = self._mask.sum()
        if self._distributed:
            dist.all_reduce(self._tokens)

    def _measure(self, hookpoint: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        self._variances[hookpoint] = summed_variance(outputs[self._mask], None)
