"""Decoder: the sum of the decoder rows of the latents that fired."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.kernels.sparse import Picks
from sae_binary_ext.coding.selection import scatter_codes


def decode(codes: Tensor, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
    """Reconstruction [..., d_out] of codes.

    Args:
        codes: [..., latents], 0/1.
        decoder_weight: [latents, d_out]; the decoder row also sets a latent's magnitude.
        decoder_bias: [d_out].
    """
    return torch.matmul(codes, decoder_weight) + decoder_bias


def prefix_outputs(
    codes: Tensor, decoder_weight: Tensor, decoder_bias: Tensor, groups: int
) -> Iterator[Tensor]:
    """Reconstructions [tokens, d_out] from the first group of latents, the first two, and so on.

    The last reconstruction, from all groups, is left out: it is that of decode. The groups have
    equal sizes, and the last one also has the remaining latents. Other arguments as for decode.
    """
    size, output = len(decoder_weight) // groups, decoder_bias
    for first in range(0, size * (groups - 1), size):
        part = slice(first, first + size)
        output = output + codes[:, part] @ decoder_weight[part]
        yield output


def decode_indices(
    codes: Tensor, picks: Picks, decoder_weight: Tensor, decoder_bias: Tensor
) -> Tensor:
    """As decode, but from codes [tokens, k] in index form; picks holds the latent of each code."""
    if torch.compiler.is_compiling():
        # torch.compile does not trace sorts that two passes share.
        dense = scatter_codes(codes, picks.index, picks.width)
        return decode(dense, decoder_weight, decoder_bias)
    return _RowSum.apply(codes, decoder_weight, picks) + decoder_bias  # pyright: ignore


class _RowSum(torch.autograd.Function):
    """Codes @ weight, skipping latents that learn but cannot fire."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, weight: Tensor, picks: Picks) -> Tensor:
        firing = picks.firing
        fired = codes[:, : firing.index.shape[-1]].contiguous()
        ctx.save_for_backward(fired, weight)
        ctx.picks = picks
        return firing.times(fired, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        fired, weight = ctx.saved_tensors
        (grad,) = grad_outputs
        picks: Picks = ctx.picks
        grad_codes = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_codes = picks.row_dots(grad, weight).to(fired.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = picks.firing.transposed_times(fired, grad)
        return grad_codes, grad_weight, None
