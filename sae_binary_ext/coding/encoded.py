"""Codes of a batch in whichever form is cheaper, so that adapters need not choose."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.decode import decode, decode_indices
from sae_binary_ext.coding.encode import binarise, encode_indices, picks_indices, pre_activations
from sae_binary_ext.coding.ranks import sum_over_ranks
from sae_binary_ext.coding.selection import CodeRule, scatter_codes


@dataclass(frozen=True)
class Encoded:
    """Codes of a batch.

    Attributes:
        codes: 0.0 or 1.0; [tokens, latents], or [tokens, k] where index is given.
        index: int64 [tokens, k], the latents the codes belong to, or None.
        pre_activation: [tokens, latents].
        latents: number of latents.
    """

    codes: Tensor
    index: Tensor | None
    pre_activation: Tensor
    latents: int

    def dense(self) -> Tensor:
        """Codes [tokens, latents], with gradient."""
        if self.index is None:
            return self.codes
        return scatter_codes(self.codes, self.index, self.latents)

    def decode(self, decoder_weight: Tensor, decoder_bias: Tensor) -> Tensor:
        """Reconstruction [tokens, d_out]; see coding.decode."""
        if self.index is None:
            return decode(self.codes, decoder_weight, decoder_bias)
        return decode_indices(self.codes, self.index, decoder_weight, decoder_bias)

    def fired_latents(self) -> Tensor:
        """The latent of every firing in the batch, int64 [firings]."""
        fired = self.codes != 0
        return fired.nonzero()[:, 1] if self.index is None else self.index[fired]

    def firing_rates(self, group: ProcessGroup | None) -> Tensor:
        """Share of the tokens, of all ranks' where there is a group, on which each latent fired.

        Returns:
            float32 [latents], without gradient.
        """
        fired = self.fired_latents()
        counts = torch.zeros(self.latents + 1, device=fired.device)
        counts.index_add_(0, fired, torch.ones_like(fired, dtype=counts.dtype))
        counts[-1] = len(self.codes)
        total = sum_over_ranks(counts, group)
        return total[:-1] / total[-1]


def encode_batch(
    centred: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    log_threshold: Tensor,
    origin: Tensor,
    rule: CodeRule,
    noise: bool = False,
) -> Encoded:
    """Codes of a training batch.

    Args:
        centred: [tokens, d_in], the coder's input minus origin.
        encoder_weight: [d_in, latents].
        encoder_bias: [latents].
        log_threshold: [latents].
        origin: [d_in], what was subtracted and is to learn; zeros where nothing was. It receives
            its gradient here, not through centred.
        rule: selection and surrogate.
        noise: sample, where the selection samples.
    """
    latents = encoder_weight.shape[1]
    if picks_indices(rule, latents):
        codes, index, pre = encode_indices(
            centred, encoder_weight, encoder_bias, log_threshold, origin, rule
        )
        return Encoded(codes, index, pre, latents)
    pre = pre_activations(centred, encoder_weight, encoder_bias, origin)
    return Encoded(binarise(pre, log_threshold, rule, noise), None, pre, latents)
