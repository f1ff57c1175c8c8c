"""The formulas in plain dense float64, written apart from the package, to compare it with."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule


def slope(margin: Tensor, rule: CodeRule) -> Tensor:
    """Surrogate derivative at each margin."""
    temperature = rule.surrogate_temperature
    if rule.surrogate == "sigmoid":
        return 1 / (4 * temperature * torch.cosh(margin / (2 * temperature)) ** 2)
    if rule.surrogate == "rectangle":
        return ((2 * margin.abs() < temperature).double()) / temperature
    if rule.surrogate == "reste":
        # Closer to 0 than this the slope is that at this distance.
        return margin.abs().clamp_min(1e-6) ** (1 / temperature - 1) / temperature
    return torch.ones_like(margin)


def may_fire(margin: Tensor, rule: CodeRule) -> Tensor:
    """1.0 for each latent that its selection lets fire, row by row."""
    allowed = torch.zeros_like(margin)
    size = margin.shape[-1] // rule.k
    for row in range(len(margin)):
        if rule.selection == "threshold":
            allowed[row] = 1
        elif rule.selection == "topk":
            ranked = sorted(range(margin.shape[-1]), key=lambda j: -margin[row, j].item())
            allowed[row, ranked[: rule.k]] = 1
        else:
            for group in range(rule.k):
                members = range(group * size, (group + 1) * size)
                allowed[row, max(members, key=lambda j: margin[row, j].item())] = 1
    return allowed


def codes(pre: Tensor, log_threshold: Tensor, rule: CodeRule) -> Tensor:
    """Noise-free codes [tokens, latents] whose autograd is the surrogate's."""
    margin = pre - log_threshold.exp()
    allowed = may_fire(margin.detach(), rule)
    if rule.selection == "gumbel":
        soft = torch.softmax(margin.unflatten(-1, (rule.k, -1)) / rule.surrogate_temperature, -1)
        soft = soft.flatten(-2)
        return allowed + (soft - soft.detach())
    hard = allowed * (margin > 0)
    if rule.surrogate_latents != "selected":
        # Each token's cutoff moves as the weighted mean of the margins does, where k binds.
        cutoff = torch.where(allowed > 0, margin, torch.inf).amin(-1, keepdim=True).detach()
        binds = (cutoff > 0) & (rule.k < margin.shape[-1])
        learns = torch.ones_like(margin)
        if rule.surrogate_latents == "near":
            learns = may_fire(margin.detach(), replace(rule, k=min(2 * rule.k, margin.shape[-1])))
        weight = learns * slope(margin - cutoff * binds, rule).detach()
        total = torch.where(binds, weight.sum(-1, keepdim=True), torch.inf)
        linear = weight * (margin - (weight * margin).sum(-1, keepdim=True) / total)
        return hard + (linear - linear.detach())
    linear = allowed * slope(margin, rule).detach() * margin
    return hard + (linear - linear.detach())


def bernoulli_bits(rate: float) -> float:
    """Entropy of one 0/1 variable."""
    return -sum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)


def entropy_bits(codes: Tensor) -> float:
    """Sum over latents of the entropy of their mean, term by term."""
    return sum(bernoulli_bits(rate) for rate in codes.double().mean(0).tolist())


def excess_rate(codes: Tensor, limit: float) -> Tensor:
    """Sum over latents of what their mean code has above a limit; its autograd is the formula's."""
    rates = codes.double().mean(0)
    return sum((rate - limit for rate in rates if rate > limit), start=torch.zeros(()))


def covariance_l1(codes: Tensor) -> float:
    """Sum over i != j of the absolute unbiased covariance, pair by pair."""
    columns = codes.double().T
    total = 0.0
    for i, first in enumerate(columns):
        for j, second in enumerate(columns):
            if i != j:
                products = (first - first.mean()) * (second - second.mean())
                total += abs(products.sum().item()) / (len(codes) - 1)
    return total


def covariance_gradient(codes: Tensor) -> Tensor:
    """Of covariance_l1, for codes of 0 and 1: signs of the covariances in whole numbers."""
    whole = codes.long()
    counts = whole.sum(0)
    signs = (len(codes) * (whole.T @ whole) - counts[:, None] * counts).sign().fill_diagonal_(0)
    centred = codes.double() - codes.double().mean(0)
    return 2 / (len(codes) - 1) * centred @ signs.double()
