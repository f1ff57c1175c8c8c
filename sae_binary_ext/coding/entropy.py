"""Entropy of codes, their firing rates, and burstiness.

Source: Cho et al. (arXiv 2509.20997). Entropy is in bits throughout.
"""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext.coding.kernels.ranks import sum_over_ranks

# Over about how many tokens the norm of prices is averaged, and the largest share of one batch.
NORM_TOKENS, LARGEST_SHARE = 20_000, 0.1


def bernoulli_entropy(rate: Tensor) -> Tensor:
    """Entropy of a 0/1 variable, in bits: -p log2 p - (1 - p) log2 (1 - p), elementwise.

    rate has any shape, and values in [0, 1]. At rates 0 and 1, entropy and gradient are 0. The true
    slope at these rates is infinite and points outside the interval: a latent that never fires in a
    batch has no entropy left to lose.
    """
    inside = (rate > 0) & (rate < 1)
    # Replace rates of 0 and 1 before the logarithm: otherwise backward gives inf * 0 = NaN.
    safe = torch.where(inside, rate, 0.5)
    bits = -(safe * safe.log() + (1 - safe) * torch.log1p(-safe)) / math.log(2)
    return torch.where(inside, bits, 0.0)


def firing_rates(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Mean code of each latent over the batch, with gradient: [latents], float32 or wider.

    Args:
        codes: 0/1, shape [..., latents]; all dimensions but the last are the batch.
        group: the ranks whose batches together form one batch; None for a single process.
    """
    rows = codes.flatten(0, -2)
    counts = sum_over_ranks(sum_over_tokens(rows), group)
    return counts / batch_tokens(len(rows), rows.device, group)


def minibatch_entropy(codes: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum over latents of the entropy of their firing rate (the paper's H): a scalar in bits.

    The arguments and the dtype are those of firing_rates.
    """
    return bernoulli_entropy(firing_rates(codes, group)).sum()


def excess_rate(rates: Tensor, limit: float) -> Tensor:
    """Sum over latents of max(firing rate - limit, 0), a scalar; rates is [latents]."""
    return (rates - limit).clamp_min(0).sum()


def burstiness(codes: Tensor, rates: Tensor) -> Tensor:
    """log2 |h - mean of h| of codes h [..., latents], with their firing rates [latents].

    Burstiness measures how far each code is from its latent's mean code. A code of 0 from a latent
    that nearly always fires is as bursty as a code of 1 from a rare latent. The result is -inf if a
    latent's codes are all equal.
    """
    return (codes - rates).abs().log2()


def price_of_bits(firing_rate: Tensor, cost_of_bit: float, tokens: int) -> Tensor:
    """What a code of 1 costs more than a code of 0, [latents]; in the unit of cost_of_bit.

    A latent of firing rate p costs log2(1 / p) bits where it fires and log2(1 / (1 - p)) elsewhere.
    cost_of_bit is the squared error that is worth one bit. firing_rate, [latents], was measured on
    `tokens` tokens; a rate of 0 counts as half a token.
    """
    rate = firing_rate.clamp(0.5 / tokens, 1 - 0.5 / tokens)
    return cost_of_bit * ((1 - rate) / rate).log2()


def follow_prices(before: Tensor, now: Tensor, tokens: Tensor | int) -> Tensor:
    """Prices [latents] in proportion to those of a batch, of a norm that follows slowly.

    Prices are in units of a batch's variance, which differs by a quarter or more among batches of
    256 tokens. One token of large norm can multiply it by a hundred. The norm is therefore a
    running geometric mean over about NORM_TOKENS tokens, in which such a token counts little. The
    earlier prices hold all that the mean needs, so a run that was stopped goes on alike.

    Args:
        before: the prices of earlier batches. If all are 0, there were none.
        now: the prices by this batch's variance alone.
        tokens: number of tokens of the batch, of all ranks together.
    """
    old, new = before.float().norm(), now.float().norm()
    share = (old.new_zeros(()) + tokens / NORM_TOKENS).clamp_max(LARGEST_SHARE)
    norm = (old.log() * (1 - share) + new.log() * share).exp()
    return torch.where((old > 0) & (new > 0), now * (norm / new).to(now.dtype), now)


def ramp(step: int, start: int, warm_up: int) -> float:
    """The factor, from 0 to 1, on a loss's coefficient at a training step.

    The factor is 0 before start, then rises linearly to 1 over warm_up steps (at once if warm_up is
    0).
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / max(warm_up, 1))


class FiringRates:
    """Exact firing rates of a stream of codes, for any batch sizes.

    Attributes:
        counts: float64 [latents], tokens on which each latent was active; exact up to 2^53 tokens.
        tokens: tokens seen.
    """

    def __init__(self, latents: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(latents, dtype=torch.float64, device=device)
        self.tokens = 0

    def update(self, codes: Tensor) -> None:
        """Count a batch of codes or activations, shape [..., latents]; non-zero means active."""
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
    return sum_over_ranks(torch.full((), tokens, device=device), group)


def sum_over_tokens(codes: Tensor) -> Tensor:
    """Sum [latents] of codes [tokens, latents], float32 or wider; bfloat16 sums stop at 256."""
    return codes.sum(0, dtype=torch.promote_types(codes.dtype, torch.float32))
