"""Training with codes that give every latent a gradient: threshold, and topk with "all" learning.

Few of these codes are 1, so the decoder sums rows. But the surrogate gives every latent a gradient
on every token. A zero-stride placeholder stands for the codes in autograd's graph. Its gradient is
one array: the sum of the gradients of reconstruction, counts and codes. This array goes through the
surrogate and the encoder's products once.
"""

from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import learn_through
from sae_binary_ext.coding.kernels.processor import cached_parts
from sae_binary_ext.coding.kernels.sparse import CodeMatrix


class ToLearn(torch.autograd.Function):
    """The placeholder: zeros [tokens, latents] in the threshold's dtype, stored as one number.

    Its inputs are the tensors of Encoder.learned, the pre-activations [tokens, latents] without
    gradient, the cutoff [tokens, 1] (see competing.find_cutoff; None with threshold) and the rule.
    """

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


class Dense(torch.autograd.Function):
    """Codes [tokens, latents] of the given dtype, 0.0 or 1.0."""

    @staticmethod
    def forward(ctx: Any, learning: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = learning.dtype
        return active.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0].to(ctx.dtype), None, None


class Decode(torch.autograd.Function):
    """Sums of decoder rows [tokens, d_out], and sums of codes over tokens [latents]."""

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
