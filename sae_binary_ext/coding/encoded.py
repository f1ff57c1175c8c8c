"""Codes of a batch in whichever form is cheapest, so that adapters need not choose."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import override

from sae_binary_ext.coding.competing import find_cutoff
from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.deferred import DeferredCodes
from sae_binary_ext.coding.encode import Encoder, binarise, pick_above, product_dtype
from sae_binary_ext.coding.entropy import batch_tokens
from sae_binary_ext.coding.indexed import CodeMatrix, Picks, code_matrix
from sae_binary_ext.coding.picked import encode_indices, encode_picks, picks_indices
from sae_binary_ext.coding.ranks import sum_over_ranks
from sae_binary_ext.coding.selection import scatter_codes
from sae_binary_ext.coding.threshold import codes_to_learn, decode_codes_above, dense_codes


@dataclass(eq=False)
class Encoded(ABC):
    """Codes of a batch.

    Attributes:
        tokens: number of tokens.
        latents: number of latents.
    """

    tokens: int
    latents: int

    @abstractmethod
    def dense(self) -> Tensor:
        """Codes [tokens, latents], 0.0 or 1.0, with gradient."""

    @abstractmethod
    def deferred(self) -> Tensor:
        """What dense returns, made when its values are asked for where there is a cheaper form."""

    @abstractmethod
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        """Reconstruction [tokens, d_out]; see coding.decode."""

    @abstractmethod
    def counts(self) -> Tensor:
        """Sum of the codes over tokens, [latents], with gradient; float32 or wider."""

    def firing_rates(self, group: ProcessGroup | None = None) -> Tensor:
        """Mean code of each latent over the tokens, of all ranks' where there is a group.

        Returns:
            [latents], with gradient, float32 or wider.
        """
        counts = sum_over_ranks(self.counts(), group)
        return counts / batch_tokens(self.tokens, counts.device, group)


@dataclass(eq=False)
class DenseCodes(Encoded):
    """Codes of a selection that has no cheaper form.

    Attributes:
        codes: [tokens, latents].
    """

    codes: Tensor

    @override
    def dense(self) -> Tensor:
        return self.codes

    @override
    def deferred(self) -> Tensor:
        return self.codes

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        return decode(self.codes, decoder_weight, decoder_bias)

    @override
    def counts(self) -> Tensor:
        return _sum_over_tokens(self.codes)


@dataclass(eq=False)
class CheaperCodes(Encoded):
    """Codes in a form that costs less than an array of all of them."""

    @abstractmethod
    def latents_per_token(self) -> Tensor:
        """How many latents are active on each token, int64 [tokens]."""

    @abstractmethod
    def tokens_per_latent(self) -> Tensor:
        """On how many tokens each latent is active, int64 [latents]."""

    @abstractmethod
    def learned(self, gradient: Tensor) -> Tensor:
        """Gradient of what learns in place of the codes, of that of the codes [tokens, latents]."""


class _Deferred(torch.autograd.Function):
    """Codes of the given dtype, made when read, in place of which something else learns."""

    @staticmethod
    def forward(ctx: Any, learning: Tensor, codes: CheaperCodes, dtype: torch.dtype) -> Tensor:
        ctx.codes = codes
        return DeferredCodes(codes, (codes.tokens, codes.latents), dtype, learning.device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.codes.learned(grad_outputs[0]), None, None


@dataclass(eq=False)
class PickedCodes(CheaperCodes):
    """Codes of the latents that learn from a token, a fixed number of them.

    Attributes:
        codes: [tokens, m], 0.0 or 1.0.
        picks: the latents they belong to.
    """

    codes: Tensor
    picks: Picks

    @override
    def dense(self) -> Tensor:
        return scatter_codes(self.codes, self.picks.index, self.latents)

    @override
    def latents_per_token(self) -> Tensor:
        return self.codes.detach().sum(-1, dtype=torch.int64)

    @override
    def tokens_per_latent(self) -> Tensor:
        firing = self.picks.firing.index
        ones = self.codes.detach()[:, : firing.shape[-1]].to(torch.int64)
        none = ones.new_zeros(self.latents)
        return none.index_add_(0, firing.flatten(), ones.flatten())

    @override
    def deferred(self) -> Tensor:
        return cast(Tensor, _Deferred.apply(self.codes, self, self.codes.dtype))

    @override
    def learned(self, gradient: Tensor) -> Tensor:
        return gradient.gather(-1, self.picks.index)

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        return decode_indices(self.codes, self.picks, decoder_weight, decoder_bias)

    @override
    def counts(self) -> Tensor:
        codes = self.codes.to(torch.promote_types(self.codes.dtype, torch.float32))
        none = codes.new_zeros(self.latents)
        return none.index_add(0, self.picks.index.flatten(), codes.flatten())


@dataclass(eq=False)
class ThresholdCodes(CheaperCodes):
    """Codes whose every latent learns (see coding.threshold).

    Attributes:
        pre_activation: [tokens, latents].
        encoder: what made the pre-activations.
    """

    pre_activation: Tensor
    encoder: Encoder
    _decoded_counts: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        pre, threshold = self.pre_activation.detach(), self.encoder.threshold.detach()
        cutoff = None
        if self.encoder.rule.competes:
            picked, index = pick_above(pre, threshold, self.encoder.rule)
            cutoff = find_cutoff(picked, self.latents)
            self._active = scatter_codes(picked > 0, index, self.latents)
        else:
            # The difference of two floats is positive exactly where the first is larger.
            self._active = pre > threshold
        self._learning = codes_to_learn(self.encoder, self.pre_activation, cutoff)

    @cached_property
    def _matrix(self) -> CodeMatrix:
        return code_matrix(self._active)

    @override
    def dense(self) -> Tensor:
        return dense_codes(self._learning, self._active, self.pre_activation.dtype)

    @override
    def latents_per_token(self) -> Tensor:
        return self._active.sum(-1)

    @override
    def tokens_per_latent(self) -> Tensor:
        return self._matrix.counts()

    @override
    def deferred(self) -> Tensor:
        return cast(Tensor, _Deferred.apply(self._learning, self, self.pre_activation.dtype))

    @override
    def learned(self, gradient: Tensor) -> Tensor:
        return gradient.to(self._learning.dtype)

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        row_sum, self._decoded_counts = decode_codes_above(
            self._learning, self._matrix, decoder_weight
        )
        return row_sum + decoder_bias

    @override
    def counts(self) -> Tensor:
        # Once decoded, they come with the reconstruction at no cost.
        if self._decoded_counts is None:
            return _sum_over_tokens(self.dense())
        return self._decoded_counts


def encode_batch(encoder: Encoder, noise: bool = False) -> tuple[Encoded, Tensor]:
    """Codes of a training batch and all pre-activations.

    Args:
        encoder: of tokens [tokens, d_in].
        noise: sample, where the selection samples.

    Returns:
        Codes, and pre-activations [tokens, latents] with gradient.
    """
    shape = (len(encoder.centred), encoder.latents)
    if picks_indices(encoder.rule, encoder.latents):
        codes, picks, pre = encode_indices(encoder)
        return PickedCodes(*shape, codes, picks), pre
    pre = encoder.pre_activations()
    if encoder.rule.every_latent_learns:
        return ThresholdCodes(*shape, pre, encoder), pre
    return DenseCodes(*shape, binarise(pre, encoder.log_threshold, encoder.rule, noise)), pre


def encode_codes(encoder: Encoder, noise: bool = False) -> Encoded:
    """Codes of a training batch alone; arguments as encode_batch takes them.

    A coder of few latents a token then never has all pre-activations at once.
    """
    if not picks_indices(encoder.rule, encoder.latents):
        return encode_batch(encoder, noise)[0]
    codes, picks = encode_picks(encoder)
    return PickedCodes(len(encoder.centred), encoder.latents, codes, picks)


def encode_deferring(encoder: Encoder, noise: bool = False) -> tuple[Encoded, Tensor]:
    """What encode_batch returns, with pre-activations that are made when first read, where codes
    can be had without them.

    Whatever reads them finds those that the codes were made of, before an optimiser's step or after
    it. Values in float32 may differ by their rounding from those that encode_batch makes.
    """
    # Under autocast a product's precision is that of the place where it is made.
    narrower = product_dtype(encoder.centred) != encoder.weight.dtype
    if narrower or not picks_indices(encoder.rule, encoder.latents):
        return encode_batch(encoder, noise)
    held = encoder.with_weight_held()
    return encode_codes(held), held.deferred_pre_activations()


def _sum_over_tokens(codes: Tensor) -> Tensor:
    return codes.sum(0, dtype=torch.promote_types(codes.dtype, torch.float32))
