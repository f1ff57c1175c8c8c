"""Batches that have no token to train on, or some whose activations are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sparsify import SparseCoder
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.entropy import batch_tokens
from sae_binary_ext.coding.kernels import sum_over_ranks

if TYPE_CHECKING:
    from sae_binary_ext.sparsify.coder import BinarySparseCoder


def forward_of_rows(
    rows: Tensor,
    x: Tensor,
    y: Tensor | None,
    forward: Callable[[Tensor, Tensor | None], ForwardOutput],
) -> ForwardOutput:
    """A coder's forward pass of some of a batch's tokens; the reconstruction of the others is 0.

    Args:
        rows: bool [tokens].
        x: [tokens, d_in].
        y: [tokens, d_in], or None.
        forward: the pass of given tokens.
    """
    output = forward(x[rows], None if y is None else y[rows])
    sae_out = output.sae_out.new_zeros(x.shape)
    sae_out[rows] = output.sae_out
    return output._replace(sae_out=sae_out)


def empty_output(coder: BinarySparseCoder, x: Tensor) -> ForwardOutput:
    """A coder's forward pass of a batch without tokens: nothing fires, and no gradient but 0.

    Args:
        coder: in training or not.
        x: [0, d_in].

    Raises:
        ValueError: it is the first batch of a Trainer, which the start is read off.
    """
    if coder.progress.first_batch:
        raise ValueError(
            "The first batch has no token to train on: exclude_tokens leaves out all of them. "
            "Shuffle the data, raise batch_size, or give fewer exclude_tokens."
        )
    none = sum(parameter.sum() for parameter in coder.parameters()) * x.new_zeros(
        (), dtype=coder.dtype
    )
    sae_out = x.to(coder.dtype) + none
    fired = torch.zeros(0, dtype=torch.int64, device=x.device)
    return ForwardOutput(
        sae_out, sae_out.new_zeros(0), fired, none + torch.nan, none.detach(), none.detach()
    )


@torch.no_grad()
def mend_start(coder: SparseCoder, x: Tensor, y: Tensor, group: ProcessGroup | None) -> None:
    """Set the biases again that sparsify's Trainer set to means of a first batch with NaN in it.

    Args:
        coder: its biases are changed in place where they are not finite.
        x: [tokens, d_in], finite.
        y: [tokens, d_in], the target, finite.
        group: ranks whose batches make up one. All call this: the Trainer's means are over all.
    """
    tokens = batch_tokens(len(x), x.device, group)
    if not coder.b_dec.isfinite().all():
        coder.b_dec.copy_(sum_over_ranks(y.sum(0), group) / tokens)
    if not coder.encoder.bias.isfinite().all():
        mean = sum_over_ranks(x.sum(0), group) / tokens
        coder.encoder.bias.copy_(-mean.to(coder.dtype) @ coder.encoder.weight.T)
