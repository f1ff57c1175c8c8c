"""Which latent of one coder is which of another, by how their firing correlates."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# With so many firings a token a matrix product counts faster than sums of rows.
MOST_FIRINGS_A_TOKEN = 8
FIRINGS_AT_ONCE = 4096


@dataclass(frozen=True)
class Matches:
    """Of some latents of one coder the latent of another that fires most like each.

    Attributes:
        latents: int64 [n], of the other coder.
        correlations: float64 [n], of the two latents' firing; -inf where the one never or always
            fires, and no latent is like it.
    """

    latents: Tensor
    correlations: Tensor


class JointCounts(nn.Module):
    """On how many tokens latents of two coders are active together.

    Buffer: counts, float64 [latents of the one, latents of the other].
    """

    counts: Tensor

    def __init__(self, ones: int, others: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(ones, others, dtype=torch.float64))

    def add(self, ones: Tensor, others: Tensor) -> None:
        """Count a batch.

        Args:
            ones: bool [tokens, latents of the one].
            others: bool [tokens, latents of the other].
        """
        token, latent = ones.nonzero(as_tuple=True)
        if len(token) > MOST_FIRINGS_A_TOKEN * len(ones):
            self.counts += ones.T.float() @ others.float()
            return
        for part in torch.arange(len(token)).split(FIRINGS_AT_ONCE):
            self.counts.index_add_(0, latent[part], others[token[part]].double())

    def matches(self, ones_rates: Tensor, others_rates: Tensor, tokens: int) -> Matches:
        """The most correlated latents.

        Args:
            ones_rates: [latents of the one], firing rates.
            others_rates: [latents of the other].
            tokens: counted.
        """
        deviations = [
            (rates * (1 - rates)).clamp_min(0).sqrt() for rates in (ones_rates, others_rates)
        ]
        covariance = self.counts / tokens - torch.outer(ones_rates, others_rates)
        correlation = covariance / torch.outer(*deviations)
        best = torch.where(correlation.isfinite(), correlation, -torch.inf).max(dim=1)
        return Matches(best.indices, best.values)
