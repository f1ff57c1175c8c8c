"""Every selection, surrogate and loss, dense and plain, an equation a line.

Read this file beside the papers. The rest of the package computes the same at less cost, and the
tests compare it with this file for value and gradient. Nothing here is fast; use float64.

[Q] Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
[C] Cho, Yang, Li, Kurkoski, Inoue, Binary Autoencoder for Mechanistic Interpretability of Large
Language Models (arXiv 2509.20997).

Axes: n tokens, d_in and d_out dimensions, m latents. h is a code, v = pre-activation - threshold.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule


def slope(margin: Tensor, rule: CodeRule) -> Tensor:
    """dh/dv of the surrogate at each margin v [...], for temperature T ([Q], section 3)."""
    temperature = rule.surrogate_temperature
    if rule.surrogate == "sigmoid":  # s'(v / T) / T, where s' = 1 / (4 cosh^2(./2)); [C] has T = 1
        return 1 / (4 * temperature * torch.cosh(margin / (2 * temperature)) ** 2)
    if rule.surrogate == "rectangle":  # 1 / T where |v / T| < 1/2
        return (2 * margin.abs() < temperature).to(margin.dtype) / temperature
    if rule.surrogate == "reste":  # |v|^((1 - T) / T) / T, held fixed closer to 0 than 1e-6
        return margin.abs().clamp_min(1e-6) ** (1 / temperature - 1) / temperature
    return torch.ones_like(margin)  # identity


def may_fire(margin: Tensor, rule: CodeRule) -> Tensor:
    """1.0 for each latent that its selection lets fire; margins and result [n, m]."""
    allowed = torch.zeros_like(margin)
    size = margin.shape[-1] // rule.k
    for row in range(len(margin)):
        if rule.selection == "threshold":  # every latent ([C]; "binary" in [Q]'s files)
            allowed[row] = 1
        elif rule.selection == "topk":  # the k largest margins of the token
            ranked = sorted(range(margin.shape[-1]), key=lambda j: -margin[row, j].item())
            allowed[row, ranked[: rule.k]] = 1
        else:  # groupmax, and gumbel without noise: the largest of each of k contiguous groups
            for group in range(rule.k):
                members = range(group * size, (group + 1) * size)
                allowed[row, max(members, key=lambda j: margin[row, j].item())] = 1
    return allowed


def codes(pre: Tensor, log_threshold: Tensor, rule: CodeRule) -> Tensor:
    """Noise-free codes h [n, m] of pre-activations [n, m]; autograd gives the surrogate's gradient.

    h_j = 1 where j may fire and v_j > 0, v = pre - exp(log_threshold) ([Q], section 3).
    """
    margin = pre - log_threshold.exp()
    allowed = may_fire(margin.detach(), rule)
    if rule.selection == "gumbel":  # h = one-hot, dh/dv of softmax(v / T) in each group
        groups = margin.unflatten(-1, (rule.k, -1))
        soft = torch.softmax(groups / rule.surrogate_temperature, -1).flatten(-2)
        return _with_gradient_of(allowed, soft)
    hard = allowed * (margin > 0)
    if rule.surrogate_latents != "selected":
        return _with_gradient_of(hard, _competing(margin, allowed, rule))
    return _with_gradient_of(hard, allowed * slope(margin, rule).detach() * margin)


def _competing(margin: Tensor, allowed: Tensor, rule: CodeRule) -> Tensor:
    """What has the gradient p'_j (g_j - sum_i p'_i g_i / sum_i p'_i); see coding.competing.

    p' is the slope at v - c. The cutoff c is the least margin that fires, or 0 where fewer than k
    margins are positive; there the second term is absent.
    """
    cutoff = torch.where(allowed > 0, margin, torch.inf).amin(-1, keepdim=True).detach()
    binds = (cutoff > 0) & (rule.k < margin.shape[-1])
    learns = torch.ones_like(margin)
    if rule.surrogate_latents == "near":  # those of the 2k largest margins
        learns = may_fire(margin.detach(), replace(rule, k=min(2 * rule.k, margin.shape[-1])))
    weight = learns * slope(margin - cutoff * binds, rule).detach()
    total = torch.where(binds, weight.sum(-1, keepdim=True), torch.inf)
    return weight * (margin - (weight * margin).sum(-1, keepdim=True) / total)


def _with_gradient_of(value: Tensor, learned: Tensor) -> Tensor:
    return value + (learned - learned.detach())


def coder(
    x: Tensor, parameters: dict[str, Tensor], rule: CodeRule, subtracts_b_dec: bool = True
) -> tuple[Tensor, Tensor]:
    """Codes [n, m] and output [n, d_out] of inputs x [n, d_in].

    Args:
        x: hidden states.
        parameters: W_enc [d_in, m], b_enc [m], log_threshold [m], W_dec [m, d_out], b_dec [d_out]
            and, with a skip connection, W_skip [d_out, d_in].
        rule: selection and surrogate.
        subtracts_b_dec: whether the encoder reads x - b_dec, as autoencoders do.
    """
    centred = x - parameters["b_dec"] if subtracts_b_dec else x
    pre = centred @ parameters["W_enc"] + parameters["b_enc"]  # a = W_enc x + b_enc
    h = codes(pre, parameters["log_threshold"], rule)
    output = h @ parameters["W_dec"] + parameters["b_dec"]  # y = h W_dec + b_dec
    if "W_skip" in parameters:
        output = output + x @ parameters["W_skip"].T  # + W_skip x (arXiv 2501.18823)
    return h, output


def fvu(output: Tensor, target: Tensor) -> Tensor:
    """sum |y - target|^2 / sum |target - mean target|^2, a scalar."""
    return (output - target).square().sum() / (target - target.mean(0)).square().sum()


def bernoulli_bits(rate: float) -> float:
    """-p log2 p - (1 - p) log2 (1 - p), with 0 log 0 = 0."""
    return -sum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)


def entropy_bits(codes: Tensor) -> float:
    """H = sum_j bits(mean of h_j) of codes [n, m] ([C], section 3.2)."""
    return sum(bernoulli_bits(rate) for rate in codes.double().mean(0).tolist())


def excess_rate(codes: Tensor, limit: float) -> Tensor:
    """sum_j max(mean of h_j - limit, 0) of codes [n, m], with gradient."""
    rates = codes.double().mean(0)
    return sum((rate - limit for rate in rates if rate > limit), start=torch.zeros(()))


def covariance_l1(codes: Tensor) -> float:
    """C = sum_{i != j} |cov(h_i, h_j)|, unbiased, of codes [n, m] ([C], section 3.2)."""
    columns = codes.double().T
    total = 0.0
    for i, first in enumerate(columns):
        for j, second in enumerate(columns):
            if i != j:
                products = (first - first.mean()) * (second - second.mean())
                total += abs(products.sum().item()) / (len(codes) - 1)
    return total


def covariance_gradient(codes: Tensor) -> Tensor:
    """dC/dh [n, m] of codes of 0 and 1: 2 / (n - 1) (h - mean h) sign(cov), signs in integers."""
    whole = codes.long()
    counts = whole.sum(0)
    signs = (len(codes) * (whole.T @ whole) - counts[:, None] * counts).sign().fill_diagonal_(0)
    centred = codes.double() - codes.double().mean(0)
    return 2 / (len(codes) - 1) * centred @ signs.double()
