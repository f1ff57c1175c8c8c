"""Training with codes whose every latent learns (threshold, and topk whose latents compete).

Few of these codes are 1, so the decoder sums rows. The surrogate gives every latent of every token
a gradient. The gradients of reconstruction, counts and codes meet in one array, which passes the
surrogate and the encoder's products once. A zero-stride placeholder carries the gradient of the
codes there.
"""

from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import learn_through
from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.kernels.cache_blocks import cached_parts
from sae_binary_ext.coding.kernels.sparse import CodeMatrix
from sae_binary_ext.coding.selection import CodeRule


def codes_to_learn(encoder: Encoder, pre_activation: Tensor, cutoff: Tensor | None) -> Tensor:
    """What stands for the codes until they are wanted: its gradient is the codes' gradient.

    Args:
        encoder: what made the pre-activations, whose parameters learn.
        pre_activation: [tokens, latents].
        cutoff: [tokens, 1], see competing.find_cutoff; None with threshold.

    Returns:
        [tokens, latents] of nothing but zeros, in the threshold's dtype, one number in memory.
    """
    learning = _ToLearn.apply(
        encoder.centred,
        encoder.weight,
        encoder.bias,
        encoder.threshold,
        encoder.origin,
        pre_activation.detach(),
        cutoff,
        encoder.rule,
    )
    return cast(Tensor, learning)


def dense_codes(learning: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [tokens, latents] of the given dtype, 0.0 or 1.0.

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
    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        origin: Tensor,
        pre: Tensor,
        cutoff: Tensor | None,
        rule: CodeRule,
    ) -> Tensor:
        ctx.save_for_backward(centred, weight, threshold, pre, cutoff)
        ctx.rule = rule
        return threshold.new_zeros(()).expand(pre.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, threshold, pre, cutoff = ctx.saved_tensors
        rule: CodeRule = ctx.rule
        grad = torch.empty_like(pre, dtype=weight.dtype)
        grad_threshold = torch.zeros_like(threshold)
        arrays = (cached_parts(each) for each in (pre, grad_outputs[0], grad))
        row = 0
        for part, from_above, into in zip(*arrays, strict=True):
            rows = slice(row, row := row + len(part))
            part_cutoff = None if cutoff is None else cutoff[rows]
            learns = learn_through(from_above, part - threshold, rule, part_cutoff)
            into.copy_(learns)
            grad_threshold -= learns.sum(0)
        grad_bias = -grad_threshold.to(weight.dtype)
        return (
            grad @ weight.T if ctx.needs_input_grad[0] else None,
            centred.T @ grad,
            grad_bias,
            grad_threshold,
            -(weight @ grad_bias) if ctx.needs_input_grad[4] else None,
            None,
            None,
            None,
        )


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
