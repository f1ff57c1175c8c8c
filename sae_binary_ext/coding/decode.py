"""Decoder: the sum of the decoder rows of the latents that fired."""

from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.indexed import Picks


def decode(codes: Tensor, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
    """Reconstruction of codes.

    Args:
        codes: [..., latents], 0/1.
        decoder_weight: [latents, d_out]; a latent's magnitude lives in its row.
        decoder_bias: [d_out].

    Returns:
        [..., d_out].
    """
    return torch.matmul(codes, decoder_weight) + decoder_bias


def decode_indices(
    codes: Tensor, picks: Picks, decoder_weight: Tensor, decoder_bias: Tensor
) -> Tensor:
    """The decoder in index form, with the same gradients.

    Args:
        codes: [tokens, k], 0/1.
        picks: the latents they belong to.
        decoder_weight: [latents, d_out].
        decoder_bias: [d_out].

    Returns:
        [tokens, d_out].
    """
    # torch's own backward for the weights of the sum is fast, the one for its rows is not.
    row_sum = picks.times(codes, decoder_weight.detach())
    return _RowGradient.apply(row_sum, codes, decoder_weight, picks) + decoder_bias  # pyright: ignore


class _RowGradient(torch.autograd.Function):
    """Passes a sum of rows on and gives the rows their gradient."""

    @staticmethod
    def forward(ctx: Any, row_sum: Tensor, codes: Tensor, weight: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.picks = picks
        return row_sum.view_as(row_sum)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (codes,) = ctx.saved_tensors
        grad = grad_outputs[0]
        return grad, None, ctx.picks.transposed_times(codes, grad), None
