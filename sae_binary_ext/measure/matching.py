"""Matches latents of two coders by the correlation of their firing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# If a token has more firings than this, a matrix product is faster than sums of rows.
MOST_FIRINGS_A_TOKEN = 8
FIRINGS_AT_ONCE = 4096


@dataclass(frozen=True)
class Matches:
    """For n latents of a coder, the latents of another coder that fire most like them, int64 [n].

    `correlations`, float64 [n], are the correlations of firing in each pair; -inf if the first
    coder's latent never or always fires.
    """

    latents: Tensor
    correlations: Tensor


class JointCounts(nn.Module):
    """Counts of the tokens on which latents of two coders are active together.

    Buffer: counts, float64 [latents of the first coder, latents of the other].
    """

    counts: Tensor

    def __init__(self, ones: int, others: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(ones, others, dtype=torch.float64))

    def add(self, ones: Tensor, others: Tensor) -> None:
        """Add a batch: active latents of the two coders, bool [tokens, latents]."""
        token, latent = ones.nonzero(as_tuple=True)
        if len(token) > MOST_FIRINGS_A_TOKEN * len(ones):
            self.counts += ones.T.float() @ others.float()
            return
        for part in torch.arange(len(token)).split(FIRINGS_AT_ONCE):
            self.counts.index_add_(0, latent[part], others[token[part]].double())

    def matches(self, ones_rates: Tensor, others_rates: Tensor, tokens: int) -> Matches:
        """The most correlated latents, from firing rates of both coders on the same tokens."""
        both = (ones_rates, others_rates)
        deviations = [(rates * (1 - rates)).clamp_min(0).sqrt() for rates in both]
        covariance = self.counts / tokens - torch.outer(*both)
        correlation = covariance / torch.outer(*deviations)
        best = torch.where(correlation.isfinite(), correlation, -torch.inf).max(dim=1)
        return Matches(best.indices, best.values)
