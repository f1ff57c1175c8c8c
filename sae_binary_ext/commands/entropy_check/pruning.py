"""Finds latents whose bits cost more than they explain, in closed form."""

import torch
from torch import Tensor

from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.measure.refit import DecoderFit


@torch.no_grad()
def needed_latents(fit: DecoderFit, variance: float, price: float, pull: float = 1.0) -> Tensor:
    """The latents left after removing, one by one, those that cost more than they explain.

    Without latent i the least squared error rises by |w_i|^2 / (G^-1)_ii, with G the Gram matrix of
    the codes about their means and w_i the latent's decoder row (optimal brain surgeon, Hassibi and
    Stork, 1993). The latent whose bits cost most beyond that rise goes first; then the rest is
    solved anew. Training does not find such latents: the entropy of a latent that fires half of
    the time has no slope, even if the latent repeats another one.

    Args:
        fit: normal equations of codes and targets.
        variance: squared distance of the targets from their mean, summed over all tokens.
        price: share of that variance that one bit per token is worth.
        pull: ridge in tokens; keeps G invertible if latents repeat each other.

    Returns:
        int64 [left], ascending.
    """
    rates = fit.counts.diagonal().double() / fit.tokens
    gram = (fit.counts + fit.counts.triu(1).T).double()
    gram.addr_(rates, rates, alpha=-fit.tokens)
    wanted = fit.target_sums - torch.outer(rates, fit.target_sum)
    cost = price * bernoulli_entropy(rates)
    left = (cost > 0).nonzero()[:, 0]
    while len(left):
        ridge = pull * torch.eye(len(left), dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(gram[left][:, left] + ridge)
        explained = (inverse @ wanted[left]).square().sum(1) / inverse.diagonal() / variance
        saved = cost[left] - explained
        worst = saved.argmax()
        if saved[worst] <= 0:
            break
        left = torch.cat([left[:worst], left[worst + 1 :]])
    return left
