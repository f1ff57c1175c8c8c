"""Entropy of codes, their firing rates, and burstiness.

Source: Cho et al. (arXiv 2509.20997). Entropy is in bits throughout.
"""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.kernels.ranks import sum_over_ranks


def bernoulli_entropy(rate: Tensor) -> Tensor:
    """Entropy of a 0/1 variable, in bits: -p log2 p - (1 - p) log2 (1 - p), elementwise.

    Value and gradient are 0 at rates 0 and 1. There the true slope is infinite and points outside
    the interval: a latent that never fires in a batch has no entropy left to lose.

    Args:
        rate: any shape, floating point, in [0, 1].
    """
    inside = (rate > 0) & (rate < 1)
    # Replace the rate before the logarithm: otherwise backward has inf * 0 = NaN.
    safe = torch.where(inside, rate, 0.5)
    bits = -(safe * safe.log() + (1 - safe) * torch.log1p(-safe)) / math.log(2)
    return torch.where(inside, bits, 0.0)


def firing_rates(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Mean code of each latent over the batch, with gradient.

    Args:
        codes: 0/1, shape [..., latents]; all dimensions but the last are the batch.
        group: the ranks whose batches make up one; None for a single process.

    Returns:
        [latents], float32 or the wider dtype of codes.
    """
    rows = codes.flatten(0, -2)
    total = rows.sum(0, dtype=_accumulator(codes))
    return sum_over_ranks(total, group) / batch_tokens(len(rows), rows.device, group)


def minibatch_entropy(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over latents of the entropy of their mean code over the batch (the paper's H).

    Args:
        codes: 0/1, shape [..., latents]; all dimensions but the last are the batch.
        group: the ranks whose batches make up one; None for a single process.

    Returns:
        A scalar in bits, float32 or the wider dtype of codes.
    """
    return bernoulli_entropy(firing_rates(codes, group)).sum()


def excess_rate(rates: Tensor, limit: float) -> Tensor:
    """Sum over latents of the part of their firing rate above a limit: a scalar.

    Args:
        rates: any shape, floating point, in [0, 1].
        limit: a latent at or below this rate adds nothing.
    """
    return (rates - limit).clamp_min(0).sum()


def burstiness(codes: Tensor, rates: Tensor) -> Tensor:
    """log2 |h - mean of h|: how far each code is from its latent's mean code.

    A 0 of a latent that nearly always fires is as bursty as a 1 of a rare latent. The value is -inf
    if a latent's codes are all equal.

    Args:
        codes: 0/1, shape [..., latents].
        rates: shape [latents], firing rates over the data set.
    """
    return (codes - rates).abs().log2()


def ramp(step: int, start: int, warm_up: int) -> float:
    """The factor of a loss's coefficient at a training step: 0 before start, then up to 1.

    Args:
        step: number of training steps done.
        start: first step at which the loss counts.
        warm_up: steps over which the factor rises linearly; with 0 it is 1 from start on.
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / max(warm_up, 1))


class FiringRates:
    """Exact firing rates of a stream of codes, for any batch sizes.

    Attributes:
        counts: float64 [latents], tokens on which each latent was active. float64 counts exactly
            up to 2^53 tokens.
        tokens: tokens seen.
    """

    def __init__(self, latents: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(latents, dtype=torch.float64, device=device)
        self.tokens = 0

    def update(self, codes: Tensor) -> None:
        """Count a batch of codes or activations, shape [..., latents]; non-zero is active."""
        active = codes.flatten(0, -2) != 0
        self.counts += active.sum(0)
        self.tokens += len(active)

    @property
    def rates(self) -> Tensor:
        """float64 [latents]: share of tokens on which each latent was active."""
        if not self.tokens:
            raise ValueError("No codes were counted yet: call update before reading rates.")
        return self.counts / self.tokens

    @property
    def entropy_bits(self) -> float:
        """Sum over latents of the entropy of their rates, in bits a token."""
        return bernoulli_entropy(self.rates).sum().item()


def batch_tokens(tokens: int, device: torch.device, group: ProcessGroup | None) -> Tensor | int:
    """The number of tokens of this rank, or of all ranks of the group."""
    if group is None:
        return tokens
    return sum_over_ranks(torch.tensor(tokens, device=device), group)


def _accumulator(codes: Tensor) -> torch.dtype:
    # A bfloat16 sum of ones stalls at 256.
    return torch.promote_types(codes.dtype, torch.float32)
