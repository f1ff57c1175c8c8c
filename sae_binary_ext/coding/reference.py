"""Reference implementation of every selection, surrogate and loss, with one equation a line.

Read this file beside the papers. The rest of the package computes the same values at less cost, and
the tests compare its values and gradients with this file. The code here is slow; use float64. For a
surrogate or selection that is not listed here, this file calls the package's definition.

[Q] Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
[C] Cho, Yang, Li, Kurkoski, Inoue, Binary Autoencoder for Mechanistic Interpretability of Large
Language Models (arXiv 2509.20997).

Axes: n tokens, d_in and d_out dimensions, m latents. h is a code, v = pre-activation - threshold.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule, pick_latents
from sae_binary_ext.coding.surrogate import SURROGATES

# dh/dv of each surrogate at margins v [...], for temperature T ([Q], section 3).
SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # s'(v / T) / T, where s' = 1 / (4 cosh^2(./2)); [C] has T = 1
    "sigmoid": lambda v, T: 1 / (4 * T * torch.cosh(v / (2 * T)) ** 2),
    # 1 / T if |v / T| < 1/2, else 0
    "rectangle": lambda v, T: (2 * v.abs() < T).to(v.dtype) / T,
    # |v|^((1 - T) / T) / T, with |v| raised to at least 1e-6
    "reste": lambda v, T: v.abs().clamp_min(1e-6) ** (1 / T - 1) / T,
    "identity": lambda v, T: torch.ones_like(v),
}


def _largest(v: list[float], k: int) -> list[int]:
    return sorted(range(len(v)), key=lambda j: -v[j])[:k]


def _largest_of_groups(v: list[float], k: int) -> list[int]:
    size = len(v) // k
    groups = (range(first, first + size) for first in range(0, len(v), size))
    return [max(group, key=lambda j: v[j]) for group in groups]


# The latents that each selection lets fire, given a token's margins v [m] ([Q], section 3).
MAY_FIRE: dict[str, Callable[[list[float], int], Iterable[int]]] = {
    "topk": _largest,
    "groupmax": _largest_of_groups,
    "threshold": lambda v, k: range(len(v)),  # also [C]; "binary" in [Q]'s files
    "gumbel": _largest_of_groups,  # without noise
}


def slope(margin: Tensor, rule: CodeRule) -> Tensor:
    """The slope of the rule's surrogate at each margin [...]."""
    formula = SLOPES.get(rule.surrogate, SURROGATES[rule.surrogate].slope)
    return formula(margin, rule.surrogate_temperature)


def may_fire(margin: Tensor, rule: CodeRule) -> Tensor:
    """1.0 for each latent that the rule's selection lets fire; margins and result [n, m]."""
    allowed = torch.zeros_like(margin)
    for row, values in enumerate(margin.tolist()):
        if rule.selection in MAY_FIRE:
            allowed[row, list(MAY_FIRE[rule.selection](values, rule.k))] = 1
        else:
            allowed[row, pick_latents(margin[row], rule)[1]] = 1
    return allowed


def codes(pre: Tensor, log_threshold: Tensor, rule: CodeRule) -> Tensor:
    """Noise-free codes h [n, m] of pre-activations [n, m]; autograd gives the surrogate's gradient.

    h_j = 1 if j may fire and v_j > 0, v = pre - exp(log_threshold) ([Q], section 3).
    """
    margin = pre - log_threshold.exp()
    if rule.selection not in MAY_FIRE and rule.kind.make_codes is not None:
        return rule.kind.make_codes(margin, rule, False)
    allowed = may_fire(margin.detach(), rule)
    if rule.selection == "gumbel":  # h is one-hot; dh/dv is that of softmax(v / T) in each group
        groups = margin.unflatten(-1, (rule.k, -1))
        soft = torch.softmax(groups / rule.surrogate_temperature, -1).flatten(-2)
        return _with_gradient_of(allowed, soft)
    hard = allowed * (margin > 0)
    if rule.surrogate_latents != "selected":
        return _with_gradient_of(hard, _competing(margin, allowed, rule))
    return _with_gradient_of(hard, allowed * slope(margin, rule).detach() * margin)


def _competing(margin: Tensor, allowed: Tensor, rule: CodeRule) -> Tensor:
    """A value with the gradient p'_j (g_j - sum_i p'_i g_i / sum_i p'_i); see coding.competing.

    p' is the slope at v - c. The cutoff c is the smallest margin that fires. If fewer than k
    margins are positive, c is 0 and the second term is absent.
    """
    cutoff = torch.where(allowed > 0, margin, torch.inf).amin(-1, keepdim=True).detach()
    binds = (cutoff > 0) & (rule.k < margin.shape[-1])
    learns = torch.ones_like(margin)
    if rule.surrogate_latents == "near":  # the latents with the 2k largest margins
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


def refined(h: Tensor, target: Tensor, weight: Tensor, price: Tensor) -> Tensor:
    """Codes h [n, m] after greedy flips: best first, while |target - h W|^2 + h price falls."""
    h = h.clone()
    for codes, wanted in zip(h, target, strict=True):
        while True:
            flipped = (codes - torch.eye(len(codes), dtype=h.dtype)).abs()  # one flip a row
            costs = (wanted - flipped @ weight).square().sum(1) + flipped @ price
            if costs.min() >= (wanted - codes @ weight).square().sum() + codes @ price:
                break
            codes.copy_(flipped[costs.argmin()])
    return h


def fvu(output: Tensor, target: Tensor) -> Tensor:
    """sum |y - target|^2 / sum |target - mean target|^2, a scalar."""
    return (output - target).square().sum() / (target - target.mean(0)).square().sum()


def matryoshka_fvu(
    codes: Tensor, weight: Tensor, bias: Tensor, target: Tensor, groups: int
) -> Tensor:
    """Mean over g = 1 ... groups of the FVU of b + sum_j h_j W_j over latents j of groups 1 to g.

    codes [n, m]; each group has m // groups latents, and the last also the rest ([Q]'s code).
    """
    size, total = codes.shape[1] // groups, torch.zeros((), dtype=codes.dtype)
    for g in range(1, groups + 1):
        kept = [j for j in range(codes.shape[1]) if g == groups or j < g * size]
        total = total + fvu(codes[:, kept] @ weight[kept] + bias, target)
    return total / groups


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
    """dC/dh [n, m] of codes of 0 and 1: 2 / (n - 1) (h - mean h) sign(cov), with exact signs."""
    whole = codes.long()
    counts = whole.sum(0)
    signs = (len(codes) * (whole.T @ whole) - counts[:, None] * counts).sign().fill_diagonal_(0)
    centred = codes.double() - codes.double().mean(0)
    return 2 / (len(codes) - 1) * centred @ signs.double()
