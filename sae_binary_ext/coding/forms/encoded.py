"""Codes of a batch in the cheapest form, which is chosen here and not in the adapters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import override

from sae_binary_ext.coding.competing import find_cutoff
from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.encode import Encoder, binarise
from sae_binary_ext.coding.entropy import batch_tokens, sum_over_tokens
from sae_binary_ext.coding.forms.counted import CountedCodes
from sae_binary_ext.coding.forms.every_latent import Decode, Dense, ToLearn
from sae_binary_ext.coding.forms.margins import pick_above
from sae_binary_ext.coding.forms.picked import encode_indices, encode_picks, picks_indices
from sae_binary_ext.coding.kernels.ranks import sum_over_ranks
from sae_binary_ext.coding.kernels.sparse import CodeMatrix, Picks, SparseMatrix, code_matrix
from sae_binary_ext.coding.selection import scatter_codes


@dataclass(eq=False)
class Encoded(ABC):
    """Codes of a batch, in one of the forms below."""

    tokens: int
    latents: int

    @abstractmethod
    def dense(self) -> Tensor:
        """Codes [tokens, latents], 0.0 or 1.0, with gradient."""

    @abstractmethod
    def for_host(self) -> tuple[Tensor, Tensor]:
        """Codes and pre-activations for SAELens' trainer, both [tokens, latents], without gradient.

        A returned array is sparse COO if the form knows its entries. Sparse codes have the class
        CountedCodes. Sparse pre-activations have values only at the entries of the codes.
        """

    @abstractmethod
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        """Reconstruction [tokens, d_out]; see coding.decode."""

    def counts(self) -> Tensor:
        """Sum of the codes over tokens, [latents], with gradient; float32 or wider."""
        return sum_over_tokens(self.dense())

    def firing_rates(self, group: ProcessGroup | None = None) -> Tensor:
        """Mean code of each latent over all ranks' tokens: [latents], in the dtype of counts."""
        counts = sum_over_ranks(self.counts(), group)
        return counts / batch_tokens(self.tokens, counts.device, group)


@dataclass(eq=False)
class DenseCodes(Encoded):
    """Codes of a selection without a cheaper form; both arrays are [tokens, latents]."""

    codes: Tensor
    pre_activation: Tensor

    @override
    def dense(self) -> Tensor:
        return self.codes

    @override
    def for_host(self) -> tuple[Tensor, Tensor]:
        return self.codes.detach(), self.pre_activation.detach()

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        return decode(self.codes, decoder_weight, decoder_bias)


@dataclass(eq=False)
class PickedCodes(Encoded):
    """Codes [tokens, m] of the m latents that learn from each token; picks has these latents.

    margin, [tokens, m], has no gradient. threshold is [latents].
    """

    codes: Tensor
    picks: Picks
    margin: Tensor
    threshold: Tensor

    @override
    def dense(self) -> Tensor:
        return scatter_codes(self.codes, self.picks.index, self.latents)

    @override
    def for_host(self) -> tuple[Tensor, Tensor]:
        index = self.picks.firing.index
        fire = index.shape[-1]
        pre = self.margin[:, :fire] + self.threshold.detach()[index]
        codes = self.codes.detach()[:, :fire]
        token = torch.arange(self.tokens, device=index.device)[:, None].expand_as(index)
        entry = torch.stack((token, index)).flatten(1)
        shape = (self.tokens, self.latents)
        counted = CountedCodes.of(_coo(entry, codes, shape), self.counts().detach())
        return counted, _coo(entry, pre.to(codes.dtype), shape)

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        return decode_indices(self.codes, self.picks, decoder_weight, decoder_bias)

    @override
    def counts(self) -> Tensor:
        codes = self.codes.to(torch.promote_types(self.codes.dtype, torch.float32))
        none = codes.new_zeros(self.latents)
        return none.index_add(0, self.picks.index.flatten(), codes.flatten())


@dataclass(eq=False)
class ThresholdCodes(Encoded):
    """Codes that give every latent a gradient (see coding.forms.every_latent).

    pre_activation, [tokens, latents], is the output of encoder.
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
            # The sign of a float difference is exact, so this equals margin > 0.
            self._active = pre > threshold
        self._to_learn = (*self.encoder.learned(), pre, cutoff, self.encoder.rule)
        # torch.compile does not trace a cached_property.
        self._matrix: CodeMatrix = code_matrix(self._active)

    @override
    def dense(self) -> Tensor:
        dtype = self.pre_activation.dtype
        learning = ToLearn.apply(*self._to_learn)
        return cast(Tensor, Dense.apply(learning, self._active, dtype))

    @override
    def for_host(self) -> tuple[Tensor, Tensor]:
        dtype = self.pre_activation.dtype
        matrix = self._matrix
        if isinstance(matrix, SparseMatrix):
            entry = torch.stack((matrix.row, matrix.column))
            ones = torch.ones_like(matrix.row, dtype=dtype)
            codes = _coo(entry, ones, (self.tokens, self.latents))
            codes = CountedCodes.of(codes, self.counts().detach())
        else:
            codes = self._active.to(dtype)
        return codes, self.pre_activation.detach()

    @override
    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        decoded = Decode.apply(*self._to_learn, decoder_weight, self._matrix)
        row_sum, self._decoded_counts = cast(tuple[Tensor, Tensor], decoded)
        return row_sum + decoder_bias

    @override
    def counts(self) -> Tensor:
        # If decode was called, it has counted the codes already, at no cost.
        return super().counts() if self._decoded_counts is None else self._decoded_counts


def encode_batch(encoder: Encoder, noise: bool = False) -> tuple[Encoded, Tensor]:
    """Codes of a training batch, and pre-activations [tokens, latents] with gradient.

    noise says whether a selection that samples draws random codes.
    """
    shape = (len(encoder.centred), encoder.latents)
    if _picks_indices(encoder):
        codes, picks, margin, pre = encode_indices(encoder)
        return PickedCodes(*shape, codes, picks, margin, encoder.threshold), pre
    pre = encoder.pre_activations()
    if encoder.rule.every_latent_learns:
        return ThresholdCodes(*shape, pre, encoder), pre
    codes = binarise(pre, encoder.log_threshold, encoder.rule, noise)
    return DenseCodes(*shape, codes, pre), pre


def _picks_indices(encoder: Encoder) -> bool:
    return picks_indices(encoder.rule, encoder.latents, encoder.centred.device)


def encode_codes(encoder: Encoder, noise: bool = False) -> Encoded:
    """As encode_batch, but without pre-activations: index form never makes all of them at once."""
    if not _picks_indices(encoder):
        return encode_batch(encoder, noise)[0]
    codes, picks, margin = encode_picks(encoder)
    shape = (len(encoder.centred), encoder.latents)
    return PickedCodes(*shape, codes, picks, margin, encoder.threshold)


def _coo(entry: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    # The entries are in range by construction, and checking them would make a GPU wait.
    return torch.sparse_coo_tensor(entry, values.flatten(), shape, check_invariants=False)
