"""The batch of which a coder sees one part at a time (micro_acc_steps)."""

from typing import Any

import torch
from sparsify import Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from sae_binary_ext.coding import summed_variance
from sae_binary_ext.sparsify.trainer_state import TrainingProgress


class WholeBatch:
    """Number of tokens and variance of the batch that a Trainer's model is reading.

    Args:
        trainer: with micro_acc_steps above 1.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._mask = torch.ones(0, 0, dtype=torch.bool)
        self._tokens = torch.zeros(())
        self._variances: dict[str, Tensor] = {}

    def watch(self) -> list[RemovableHandle]:
        """Hook the model, ahead of the Trainer; the caller removes the hooks."""
        model = self._trainer.model
        handles = [model.register_forward_pre_hook(self._count)]
        # In a wider dtype sparsify's own sum of squares is right.
        if model.dtype.itemsize < torch.float32.itemsize and not self._distributed:
            for name in self._trainer.local_hookpoints():
                module = model.base_model.get_submodule(name)
                handles.append(
                    module.register_forward_hook(
                        lambda module, _, outputs, name=name: self._measure(name, outputs)
                    )
                )
        return handles

    def inform(self, progress: TrainingProgress, hookpoint: str, tokens: int) -> None:
        """Tell a coder what its part of so many tokens is a part of."""
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

    def _measure(self, hookpoint: str, outputs: Any) -> None:
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        self._variances[hookpoint] = summed_variance(outputs[self._mask], None)
