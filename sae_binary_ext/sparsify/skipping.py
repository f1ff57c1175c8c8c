"""Training on where some tokens' activations are not finite (the config's skip_non_finite)."""

from collections.abc import Callable

import torch
from sparsify import SparseCoder
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding import sum_over_ranks
from sae_binary_ext.coding.entropy import batch_tokens


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


def finite_variance(y: Tensor, of_whole_batch: Tensor | None, parts: int) -> Tensor | None:
    """The variance that a batch's errors are compared with, summed over tokens.

    Args:
        y: [tokens, d_in], the finite targets of a part of the batch.
        of_whole_batch: scalar, what sparsify's Trainer took it to be: NaN where any token was not
            finite. None where the part is the batch.
        parts: how many parts of this size the batch has.
    """
    if of_whole_batch is None or of_whole_batch.isfinite():
        return of_whole_batch
    return parts * (y - y.mean(0)).square().sum()


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
