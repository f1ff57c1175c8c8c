"""Training with codes that each depend on their own margin alone (selection threshold).

Few of these codes are 1, but the surrogate hands a gradient to every latent of every token. So the
decoder is sums of rows, and the way back has two products of the encoder's size, whose gradient is
finished in place between them.
"""

from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.encode import Encoder
from sae_binary_ext.coding.indexed import CodeMatrix
from sae_binary_ext.coding.parts import cached_parts
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.coding.surrogate import SURROGATES


def codes_above(
    pre_activation: Tensor, threshold: Tensor, active: Tensor, rule: CodeRule
) -> Tensor:
    """Dense codes with the rule's surrogate gradient.

    Args:
        pre_activation: [tokens, latents].
        threshold: [latents].
        active: bool [tokens, latents], whether the pre-activation exceeds the threshold.
        rule: gives the surrogate.

    Returns:
        [tokens, latents] in the pre-activations' dtype, 0.0 or 1.0.
    """
    return _Codes.apply(pre_activation, threshold, active, rule)  # pyright: ignore


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, active: Tensor, rule: CodeRule) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.rule = rule
        return active.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        margin = pre - threshold
        grad = grad_outputs[0] * _slope(margin, ctx.rule)
        return grad.to(pre.dtype), -grad.sum(0), None, None


def decode_codes_above(
    encoder: Encoder,
    pre_activation: Tensor,
    matrix: CodeMatrix,
    decoder_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums of decoder rows, and how often each latent fired, with gradients to all parameters.

    The gradients are those through the codes, without an array of codes on the way back.

    Args:
        encoder: what made the pre-activations.
        pre_activation: [tokens, latents].
        matrix: the codes, [tokens, latents].
        decoder_weight: [latents, d_out].

    Returns:
        [tokens, d_out], without the decoder's bias; and [latents], the sum of the codes over
        tokens, in the threshold's dtype.
    """
    outputs = _Decode.apply(
        encoder.centred,
        encoder.weight,
        encoder.bias,
        encoder.threshold,
        encoder.origin,
        decoder_weight,
        pre_activation.detach(),
        matrix,
        encoder.rule,
    )
    return cast(tuple[Tensor, Tensor], outputs)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        origin: Tensor,
        decoder_weight: Tensor,
        pre: Tensor,
        matrix: CodeMatrix,
        rule: CodeRule,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centred, weight, threshold, decoder_weight, pre)
        ctx.matrix, ctx.rule = matrix, rule
        return matrix.times(decoder_weight), matrix.counts().to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, threshold, decoder_weight, pre = ctx.saved_tensors
        grad_sum = grad_outputs[0].to(decoder_weight.dtype)
        grad = (grad_sum @ decoder_weight.T).to(threshold.dtype)
        grad_threshold = torch.zeros_like(threshold)
        for part, grad_part in zip(*(cached_parts(each) for each in (pre, grad)), strict=True):
            grad_part += grad_outputs[1]
            grad_part *= _slope(part - threshold, ctx.rule)
            grad_threshold -= grad_part.sum(0)
        grad = grad.to(weight.dtype)
        grad_bias = -grad_threshold.to(weight.dtype)
        return (
            grad @ weight.T if ctx.needs_input_grad[0] else None,
            centred.T @ grad,
            grad_bias,
            grad_threshold,
            -(weight @ grad_bias),
            ctx.matrix.transposed_times(grad_sum),
            None,
            None,
            None,
        )


def _slope(margin: Tensor, rule: CodeRule) -> Tensor:
    return SURROGATES[rule.surrogate](margin, rule.surrogate_temperature)
