"""Training with codes from which each latent learns: threshold, and topk with competing latents.

Few of these codes are 1, so the decoder sums rows. But the surrogate gives each latent of each
token a gradient. The gradients of reconstruction, counts and codes are added up in one array, which
goes through the surrogate and the encoder's products once. A zero-stride placeholder stands for the
codes in the graph and carries their gradient there.
"""

from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import learn_through
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.kernels.cache_blocks import cached_parts
from sae_binary_ext.coding.kernels.sparse import CodeMatrix


def codes_to_learn(encoder: Encoder, pre_activation: Tensor, cutoff: Tensor | None) -> Tensor:
    """The placeholder for the codes; its gradient is the codes' gradient.

    Args:
        encoder: made the pre-activations; its parameters learn.
        pre_activation: [tokens, latents].
        cutoff: [tokens, 1], see competing.find_cutoff; None with threshold.

    Returns:
        Zeros [tokens, latents] in the threshold's dtype, one number in memory.
    """
    inputs = (*encoder.learned(), pre_activation.detach(), cutoff, encoder.rule)
    return cast(Tensor, _ToLearn.apply(*inputs))


def dense_codes(learning: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [tokens, latents], 0.0 or 1.0.

    Args:
        learning: see codes_to_learn.
        active: bool [tokens, latents].
        dtype: of the codes.
    """
    return _Dense.apply(learning, active, dtype)  # pyright: ignore


def decode_codes_above(
    learning: Tensor, matrix: CodeMatrix, decoder_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of decoder rows, and how often each latent fired.

    Args:
        learning: see codes_to_learn.
        matrix: the codes, [tokens, latents].
        decoder_weight: [latents, d_out].

    Returns:
        [tokens, d_out], without the decoder's bias; and [latents], the sum of the codes over
        tokens, in the threshold's dtype.
    """
    return cast(tuple[Tensor, Tensor], _Decode.apply(learning, decoder_weight, matrix))


class _ToLearn(torch.autograd.Function):
    """From the encoder's tensors, pre-activations, cutoff and rule to the placeholder."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        centred, weight, _, threshold, _, pre, cutoff, ctx.rule = inputs
        ctx.save_for_backward(centred, weight, threshold, pre, cutoff)
        return threshold.new_zeros(()).expand(pre.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, threshold, pre, cutoff = ctx.saved_tensors
        grad = torch.empty_like(pre, dtype=weight.dtype)
        grad_threshold = torch.zeros_like(threshold)
        arrays = (cached_parts(each) for each in (pre, grad_outputs[0], grad))
        row = 0
        for part, from_above, into in zip(*arrays, strict=True):
            rows = slice(row, row := row + len(part))
            part_cutoff = None if cutoff is None else cutoff[rows]
            learns = learn_through(from_above, part - threshold, ctx.rule, part_cutoff)
            into.copy_(learns)
            grad_threshold -= learns.sum(0)
        grad_bias = -grad_threshold.to(weight.dtype)
        grad_centred = grad @ weight.T if ctx.needs_input_grad[0] else None
        grad_origin = -(weight @ grad_bias) if ctx.needs_input_grad[4] else None
        of_encoder = (grad_centred, centred.T @ grad, grad_bias, grad_threshold, grad_origin)
        return (*of_encoder, None, None, None)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, learning: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = learning.dtype
        return active.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0].to(ctx.dtype), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, learning: Tensor, decoder_weight: Tensor, matrix: CodeMatrix
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(decoder_weight)
        ctx.matrix, ctx.dtype = matrix, learning.dtype
        return matrix.times(decoder_weight), matrix.counts().to(learning.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (decoder_weight,) = ctx.saved_tensors
        grad_sum = grad_outputs[0].to(decoder_weight.dtype)
        grad = (grad_sum @ decoder_weight.T).to(ctx.dtype)
        grad += grad_outputs[1]
        return grad, ctx.matrix.transposed_times(grad_sum), None
