"""Latents whose bits cost more than they explain, found in closed form and taken out of a coder."""

from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext.analysis.least_squares import DecoderFit
from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.saelens import BinaryTrainingSAE


@torch.no_grad()
def needed_latents(fit: DecoderFit, variance: float, price: float, pull: float = 1.0) -> Tensor:
    """The latents that are left when those that do not pay are removed, one by one.

    Without latent i the least squared error is higher by |w_i|^2 / (G^-1)_ii, with G the Gram
    matrix of the codes about their means and w_i the latent's decoder row (as in the optimal brain
    surgeon, Hassibi and Stork, 1993). The latent whose bits cost most beyond that goes first; then
    all is solved anew. Training does not find this: the entropy of a latent that fires half of the
    time has no slope, though it may repeat another one.

    Args:
        fit: normal equations of codes and targets.
        variance: squared distance of the targets from their mean, summed over all tokens.
        price: share of that variance which a bit a token is worth.
        pull: keeps G invertible where latents repeat each other, in tokens.

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


@torch.no_grad()
def narrowed(coder: BinaryTrainingSAE, latents: Tensor) -> BinaryTrainingSAE:
    """A coder of these latents of another, int64 [left], their weights as they were.

    Raises:
        ValueError: there are none.
    """
    if not len(latents):
        raise ValueError(
            f"latents=[]: no latent of {coder.cfg.d_sae} pays for its bits, and a coder needs one. "
            "Train longer, or lower the price of a bit."
        )
    narrow = type(coder)(replace(coder.cfg, d_sae=len(latents)))
    by_latent = {"W_enc": 1, "b_enc": 0, "log_threshold": 0, "W_dec": 0}
    state = {
        name: value.index_select(by_latent[name], latents) if name in by_latent else value
        for name, value in coder.state_dict().items()
    }
    narrow.load_state_dict(state)
    return narrow
