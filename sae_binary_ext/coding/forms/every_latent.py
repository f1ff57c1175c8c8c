"""Training with codes that give every latent a gradient: threshold, and topk with "all" learning.

Few of these codes are 1, so the decoder sums rows. But the surrogate gives every latent a gradient
on every token, and few of these gradients are negligible. (In a trained coder of SmolLM2, the half
of the entries with the smallest slopes have a fifth of the slopes' sum.) So backward makes all of
them, a block of tokens at a time, from the decoder's product to the encoder's. No array of all
tokens' gradients is made.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import learn_through
from sae_binary_ext.coding.kernels.processor import blocks_of_rows, cached_parts, product_dtype
from sae_binary_ext.coding.kernels.sparse import CodeMatrix


class ToLearn(torch.autograd.Function):
    """Zeros [tokens, latents] in the threshold's dtype, stored as one number: they carry gradients.

    Its inputs are the tensors of Encoder.learned, the pre-activations [tokens, latents] without
    gradient, the cutoff [tokens, 1] (see competing.find_cutoff; None with threshold) and the rule.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, *inputs)
        return inputs[3].new_zeros(()).expand(inputs[5].shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _learned(ctx, lambda rows: grad_outputs[0][rows].clone())


class Decode(torch.autograd.Function):
    """Sums of decoder rows [tokens, d_out], and sums of codes over tokens [latents].

    Its inputs are those of ToLearn, the decoder weight [latents, d_out] and the codes' matrix.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *of_encoder, decoder_weight, ctx.matrix = inputs
        _save(ctx, *of_encoder, decoder_weight)
        matrix: CodeMatrix = ctx.matrix
        return matrix.times(decoder_weight), matrix.counts().to(of_encoder[3].dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *_, decoder_weight = ctx.saved_tensors
        grad_sum, grad_counts = grad_outputs[0].to(decoder_weight.dtype), grad_outputs[1]
        factors = grad_sum.to(ctx.of_products), decoder_weight.to(ctx.of_products)

        def of_codes(rows: slice) -> Tensor:
            grad = factors[0][rows] @ factors[1].T
            if grad.dtype != grad_counts.dtype:
                return grad + grad_counts
            for part in cached_parts(grad):
                part += grad_counts
            return grad

        of_decoder = ctx.matrix.transposed_times(grad_sum)
        return (*_learned(ctx, of_codes), of_decoder, None)


class Dense(torch.autograd.Function):
    """Codes [tokens, latents] of the given dtype, 0.0 or 1.0."""

    @staticmethod
    def forward(ctx: Any, learning: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = learning.dtype
        return active.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0].to(ctx.dtype), None, None


def _save(ctx: Any, *inputs: Any) -> None:
    centred, weight, _, threshold, _, pre, cutoff, ctx.rule, *others = inputs
    ctx.save_for_backward(centred, weight, threshold, pre, cutoff, *others)
    # Under autocast torch's own backward multiplies matrices in the narrower dtype too.
    ctx.of_products = product_dtype(centred)


def _learned(ctx: Any, of_codes: Callable[[slice], Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs of ToLearn.

    of_codes returns the gradient of some tokens' codes [block, latents]; it is overwritten.
    """
    centred, weight, threshold, pre, cutoff = ctx.saved_tensors[:5]
    # torch.compile takes contiguous arrays alone for `out`, and sparsify's weight is transposed.
    grad_weight, grad_threshold = weight.new_zeros(weight.shape), torch.zeros_like(threshold)
    grad_centred = torch.empty_like(centred) if ctx.needs_input_grad[0] else None
    narrow, left = ctx.of_products, centred.to(ctx.of_products)
    right = None if grad_centred is None else weight.to(narrow).T

    # A function, so that a block's arrays are freed before those of the next block are made.
    def add(rows: slice) -> None:
        grad, first = of_codes(rows), rows.start
        for part, own in zip(cached_parts(grad), cached_parts(pre[rows]), strict=True):
            here = slice(first, first := first + len(part))
            part_cutoff = None if cutoff is None else cutoff[here]
            part.copy_(learn_through(part, own - threshold, ctx.rule, part_cutoff))
            grad_threshold.sub_(part.sum(0))
        grad = grad.to(narrow)
        if narrow == weight.dtype:
            torch.addmm(grad_weight, centred[rows].T, grad, out=grad_weight)
        else:
            grad_weight.add_(left[rows].T @ grad)  # blocks sum in the weight's dtype
        if grad_centred is not None and right is not None:
            grad_centred[rows] = grad @ right

    for rows in blocks_of_rows(pre):
        add(rows)
    grad_bias = -grad_threshold.to(weight.dtype)
    grad_origin = -(weight @ grad_bias) if ctx.needs_input_grad[4] else None
    return grad_centred, grad_weight, grad_bias, grad_threshold, grad_origin, None, None, None
