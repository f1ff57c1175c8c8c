"""Linear encoder, threshold, selection and step: from hidden states to codes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.coding.competing import competing_codes
from sae_binary_ext.coding.deferred import Deferred
from sae_binary_ext.coding.parts import cached_parts
from sae_binary_ext.coding.selection import (
    SELECTIONS,
    CodeRule,
    ones_first,
    pick_and_next,
    select_codes,
)
from sae_binary_ext.coding.surrogate import step

# Tokens and entries of a block of pre-activations at most. On two cores (576 dimensions, 4608 and
# 36,864 latents) products of 64 tokens take twice as long a token and of 256 a third longer; of
# more than 1024 they take no less, and fresh memory for 150 MB of them a fifth of their time.
ROWS, ENTRIES = 1024, 2**24


def check_width(x: Tensor, width: int) -> None:
    """Raise ValueError where the last dimension of x is not the coder's d_in."""
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(
            f"Input of shape {tuple(x.shape)}: the coder takes d_in={width} values in the last "
            "dimension. Check that the hook is the one the coder was trained on."
        )


def pre_activations(
    centred: Tensor, encoder_weight: Tensor, encoder_bias: Tensor, origin: Tensor | None = None
) -> Tensor:
    """The linear encoder.

    Args:
        centred: [tokens, d_in], or [..., d_in] where origin is None: the coder's input, minus
            origin where there is one.
        encoder_weight: [d_in, latents].
        encoder_bias: [latents].
        origin: [d_in], what was subtracted from the input (b_dec). Where it requires a gradient
            it receives it here, as a matrix-vector product; through centred it would take a matrix
            product as large as the encoder's.

    Returns:
        [..., latents].
    """
    if origin is not None:
        return _LinearGradient.apply(  # pyright: ignore
            pre_activations, centred, encoder_weight, encoder_bias, origin
        )
    product = torch.matmul(centred, encoder_weight)
    # Under autocast the product is narrower than the bias, and so would a sum in place be.
    in_place = product.dtype == encoder_bias.dtype
    return product.add_(encoder_bias) if in_place else product + encoder_bias


def _deferred(centred: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # An optimiser may have changed weights and biases when the values are asked for.
    held = centred.detach(), weight.detach(), bias.detach().clone()
    shape = (len(centred), len(bias))
    return Deferred(lambda: pre_activations(*held), shape, weight.dtype, weight.device)


class _LinearGradient(torch.autograd.Function):
    """The linear encoder, made by a function, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[[Tensor, Tensor, Tensor], Tensor],
        centred: Tensor,
        weight: Tensor,
        bias: Tensor,
        origin: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(centred, weight)
        return make(centred, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        grad = grad_outputs[0].to(weight.dtype)
        grad_bias = grad.sum(0)
        grad_centred = grad @ weight.T if ctx.needs_input_grad[1] else None
        grad_origin = -(weight @ grad_bias) if ctx.needs_input_grad[4] else None
        return None, grad_centred, centred.T @ grad, grad_bias, grad_origin


@dataclass(frozen=True)
class Encoder:
    """An encoder, how it makes codes, and its input.

    Attributes:
        centred: [..., d_in], or [tokens, d_in] in a training step: the coder's input minus origin.
        weight: [d_in, latents].
        bias: [latents].
        log_threshold: [latents], float32 or wider: an optimiser's steps on it round away in
            bfloat16.
        origin: [d_in], what was subtracted; zeros where nothing was. Where it requires a gradient
            it receives it here, not through centred.
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
        """What a pre-activation must exceed, [latents]."""
        return self.log_threshold.exp()

    def pre_activations(self) -> Tensor:
        """[tokens, latents], with gradient; see the function of this name."""
        return pre_activations(self.centred, self.weight, self.bias, self.origin)

    def with_weight_held(self) -> "Encoder":
        """The same with a copy of the weights, transposed as screening wants it.

        Later changes of the weights, by an optimiser, do not reach it; its gradients reach them.
        """
        held = self.weight.T.clone(memory_format=torch.contiguous_format).T
        return replace(self, weight=held)

    def deferred_pre_activations(self) -> Tensor:
        """What pre_activations returns, with values that are computed when first read.

        The input and the weights must not change before; the encoder is one of with_weight_held.
        """
        return cast(
            Tensor,
            _LinearGradient.apply(_deferred, self.centred, self.weight, self.bias, self.origin),
        )


def binarise(
    pre_activation: Tensor, log_threshold: Tensor, rule: CodeRule, noise: bool = False
) -> Tensor:
    """Codes of pre-activations: 1 where a selected latent exceeds exp(log_threshold), else 0.

    Quirke et al. (arXiv 2509.25596). A log_threshold of -inf gives the zero threshold of Cho et
    al. (arXiv 2509.20997).

    Args:
        pre_activation: [..., latents], any floating dtype.
        log_threshold: [latents], float32 or wider: an optimiser's steps on it round away in
            bfloat16.
        rule: selection and surrogate.
        noise: sample, where the selection samples; for training steps alone.

    Returns:
        [..., latents] in the pre-activations' dtype, exactly 0.0 or 1.0. Gradients reach the
        pre-activations and log_threshold through the rule's surrogate.
    """
    margin = pre_activation - log_threshold.exp()
    codes = competing_codes(margin, rule) if rule.competes else select_codes(margin, rule, noise)
    return codes.to(pre_activation.dtype)


def pick_above(
    pre_activation: Tensor, threshold: Tensor, rule: CodeRule, more: int = 0
) -> tuple[Tensor, Tensor]:
    """Margins and latents that a rule picks, without an array of all margins.

    Args:
        pre_activation: [tokens, latents].
        threshold: [latents].
        rule: a selection that picks a fixed number of latents.
        more: how many come after those picked, with topk alone.

    Returns:
        Margins and latents, int64, both [tokens, k + more], the k picked first.
    """
    parts = cached_parts(pre_activation)
    picked = [pick_and_next(part - threshold, rule, more) for part in parts]
    if len(picked) == 1:
        return picked[0]
    values, index = zip(*picked, strict=True)
    return torch.cat(values), torch.cat(index)


def active_latents(
    pre_activation: Tensor, threshold: Tensor, rule: CodeRule
) -> tuple[Tensor, Tensor]:
    """Noise-free codes in index form, for every selection.

    Args:
        pre_activation: [tokens, latents].
        threshold: [latents].
        rule: selection and surrogate.

    Returns:
        Codes, 0.0 or 1.0 in the pre-activations' dtype, and the latents they belong to, both
        [tokens, m]. m is k, or for threshold the largest number active in one row, at least 1. No
        latent stands twice in a row, so scattering the codes back never overwrites a 1.
    """
    if SELECTIONS[rule.selection].pick is not None:
        values, index = pick_above(pre_activation, threshold, rule)
        codes = step(values, rule.surrogate, rule.surrogate_temperature)
    else:
        dense = select_codes(pre_activation - threshold, rule, noise=False)
        _, index = ones_first(dense != 0)
        codes = dense.gather(-1, index)
    return codes.to(pre_activation.dtype), index


def block_rows(latents: int) -> int:
    """How many tokens' pre-activations are made at once where they are not kept."""
    return min(ROWS, max(1, ENTRIES // latents))


def product_dtype(factor: Tensor) -> torch.dtype:
    """What autocast, which leaves products into given memory alone, would multiply in."""
    device = factor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return factor.dtype


def margins_in_parts(encoder: Encoder) -> Iterator[Tensor]:
    """Pre-activations minus threshold, without gradient, a few tokens at a time.

    Returns:
        [a few tokens, latents], which may be overwritten, and which the next ones may overwrite.
    """
    rows = encoder.centred.reshape(-1, encoder.centred.shape[-1])
    bias, threshold = encoder.bias, encoder.threshold
    size = block_rows(encoder.latents)
    dtype = product_dtype(rows)
    weight = encoder.weight.to(dtype)
    room = weight.new_empty(min(size, len(rows)), encoder.latents)
    for block in rows.split(size):
        product = torch.mm(block.to(dtype), weight, out=room[: len(block)])
        for part in cached_parts(product):
            # In place: fresh memory would take as long again. bfloat16 has no room for the sums.
            pre = part.add_(bias) if part.dtype == bias.dtype else part + bias
            yield pre.sub_(threshold) if pre.dtype == threshold.dtype else pre - threshold
