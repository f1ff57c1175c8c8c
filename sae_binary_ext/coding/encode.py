"""Linear encoder, threshold, selection and step: from hidden states to codes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import competing_codes
from sae_binary_ext.coding.selection import CodeRule, select_codes


def check_width(x: Tensor, width: int) -> None:
    """Raise ValueError if the last dimension of x is not the coder's d_in."""
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(
            f"Input of shape {tuple(x.shape)}: the coder takes d_in={width} values in the last "
            "dimension. Check that the hook is the one the coder was trained on."
        )


def pre_activations(
    centred: Tensor, encoder_weight: Tensor, encoder_bias: Tensor, origin: Tensor | None = None
) -> Tensor:
    """The linear encoder: pre-activations [..., latents].

    Args:
        centred: [tokens, d_in], or [..., d_in] without origin: the coder's input minus origin.
        encoder_weight: [d_in, latents].
        encoder_bias: [latents].
        origin: [d_in], the vector subtracted from the input (b_dec). The gradient of b_dec is a
            matrix-vector product through origin. Through centred it would be a matrix product.
    """
    if origin is not None:
        return _LinearGradient.apply(centred, encoder_weight, encoder_bias, origin)  # pyright: ignore
    product = torch.matmul(centred, encoder_weight)
    # Under autocast the product has a narrower dtype; a sum in place would keep that dtype.
    in_place = product.dtype == encoder_bias.dtype
    return product.add_(encoder_bias) if in_place else product + encoder_bias


class _LinearGradient(torch.autograd.Function):
    """The linear encoder; the gradient of origin is a matrix-vector product."""

    @staticmethod
    def forward(ctx: Any, centred: Tensor, weight: Tensor, bias: Tensor, origin: Tensor) -> Tensor:
        ctx.save_for_backward(centred, weight)
        return pre_activations(centred, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        grad = grad_outputs[0].to(weight.dtype)
        grad_bias = grad.sum(0)
        grad_centred = grad @ weight.T if ctx.needs_input_grad[0] else None
        grad_origin = -(weight @ grad_bias) if ctx.needs_input_grad[3] else None
        return grad_centred, centred.T @ grad, grad_bias, grad_origin


@dataclass(frozen=True)
class Encoder:
    """An encoder, its code rule and its input.

    Attributes:
        centred: [..., d_in], or [tokens, d_in] in a training step: the coder's input minus origin.
        weight: [d_in, latents].
        bias: [latents].
        log_threshold: [latents], float32 or wider: in bfloat16 rounding undoes optimiser steps.
        origin: [d_in], the vector subtracted from the input, or zeros; no gradient through centred.
        rule: selection and surrogate.
    """

    centred: Tensor
    weight: Tensor
    bias: Tensor
    log_threshold: Tensor
    origin: Tensor
    rule: CodeRule

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.weight.shape[1]

    @property
    def threshold(self) -> Tensor:
        """Thresholds [latents]: a latent may fire if its pre-activation exceeds its threshold."""
        return self.log_threshold.exp()

    def learned(self) -> tuple[Tensor, ...]:
        """The tensors that get a gradient: centred, weight, bias, threshold and origin."""
        return self.centred, self.weight, self.bias, self.threshold, self.origin

    def pre_activations(self) -> Tensor:
        """Pre-activations [tokens, latents], with gradient; see the function of this name."""
        return pre_activations(self.centred, self.weight, self.bias, self.origin)


def binarise(
    pre_activation: Tensor, log_threshold: Tensor, rule: CodeRule, noise: bool = False
) -> Tensor:
    """Codes of pre-activations: 1.0 if a selected latent exceeds exp(log_threshold), else 0.0.

    Quirke et al. (arXiv 2509.25596). A log_threshold of -inf gives the zero threshold of Cho et
    al. (arXiv 2509.20997). Gradients reach the pre-activations and log_threshold through the rule's
    surrogate.

    Args:
        pre_activation: [..., latents], any floating dtype. The codes have its shape and dtype.
        log_threshold: [latents], float32 or wider: in bfloat16 rounding undoes optimiser steps.
        rule: selection and surrogate.
        noise: whether a selection that samples draws random codes; for training steps only.
    """
    margin = pre_activation - log_threshold.exp()
    codes = competing_codes(margin, rule) if rule.competes else select_codes(margin, rule, noise)
    return codes.to(pre_activation.dtype)
