"""Adds a loss to training steps of SAELens or sparsify that sum a fixed set of losses."""

from typing import Any

import torch
from torch import Tensor


def attach_to_loss(loss: Tensor, extra: Tensor) -> Tensor:
    """A scalar with the value of loss and the gradient of loss + extra."""
    return loss + (extra - extra.detach())


def attach_to_output(output: Tensor, extra: Tensor) -> Tensor:
    """The output unchanged, any shape; its backward also adds the gradient of the scalar extra."""
    return _Attached.apply(output, extra)  # pyright: ignore[reportReturnType]


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, extra: Tensor) -> Tensor:
        ctx.extra = torch.ones_like(extra)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return grad_outputs[0], ctx.extra
