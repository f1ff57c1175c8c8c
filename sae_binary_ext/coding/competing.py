"""Selection topk with latents that compete for k places (surrogate_latents "all" and "near").

The k latents that fire are those whose margin exceeds the token's cutoff. Let
p_j = sigmoid((margin_j - cutoff) / T), or the same with another surrogate. The sum of all p_j is
held fixed, because k is fixed. Then the cutoff moves with the margins by
d cutoff = sum_j p'_j d margin_j / sum_j p'_j. So a latent's gradient is

    d L / d margin_j = p'_j (g_j - sum_i p'_i g_i / sum_i p'_i),   g_j = d L / d code_j.

The margin of a latent that gains much by firing rises and pushes out latents that gain less. On a
token with fewer than k positive margins, latents do not compete: the cutoff is 0, and the gradient
is p'_j g_j, as for selection threshold.

With "all", the sums run over all latents. With "near", the sums run over the latents with the 2k
largest margins, and no other latent learns from the token.
"""

from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import CodeRule, pick_and_next, pick_latents, scatter_codes
from sae_binary_ext.coding.surrogate import SURROGATES


def find_cutoff(picked: Tensor, latents: int) -> Tensor:
    """The cutoff, which is the smallest margin that fires: [..., 1], from picked margins [..., k].

    The cutoff is 0 if fewer than k margins are positive, or if no more than k latents compete.
    """
    if picked.shape[-1] == latents:
        return torch.zeros_like(picked[..., :1])
    return picked.amin(-1, keepdim=True).clamp_min(0)


def learn_through(
    gradient: Tensor, margin: Tensor, rule: CodeRule, cutoff: Tensor | None
) -> Tensor:
    """The margins' gradient, given the codes' gradient; all arrays are [..., latents].

    cutoff is [..., 1] (see find_cutoff), or None if latents do not compete.
    """
    slope = SURROGATES[rule.surrogate].slope
    if cutoff is None:
        return gradient * slope(margin, rule.surrogate_temperature)
    weight = slope(margin - cutoff, rule.surrogate_temperature)
    learns = gradient * weight
    # If the cutoff is positive, the latent at it has a slope, so weights do not sum to 0.
    shared = learns.sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return learns.addcmul_(weight, torch.where(cutoff > 0, shared, 0), value=-1)


def competing_codes(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes of margins, both [..., latents], with the gradient given at the top of this file."""
    latents = margin.shape[-1]
    if not rule.every_latent_learns:
        _, index = pick_and_next(margin.detach().clone(), rule, rule.next_learners(latents))
        return scatter_codes(compete_near(margin.gather(-1, index), rule), index, latents)
    picked, index = pick_latents(margin.detach(), rule)
    codes = scatter_codes((picked > 0).to(margin.dtype), index, latents)
    return _Competing.apply(margin, codes, find_cutoff(picked, latents), rule)  # pyright: ignore


def compete_near(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes of the m latents nearest to firing, which compete only with each other.

    margin is [..., m], with the k picked latents first (see pick_and_next). The codes are [..., m],
    1.0 for each picked latent whose margin is positive, else 0.0.
    """
    near = margin.detach()
    picked = torch.arange(near.shape[-1], device=near.device) < rule.k
    codes = ((near > 0) & picked).to(near.dtype)
    cutoff = find_cutoff(near[..., : rule.k], near.shape[-1])
    return _Competing.apply(margin, codes, cutoff, rule)  # pyright: ignore[reportReturnType]


class _Competing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor, codes: Tensor, cutoff: Tensor, rule: CodeRule) -> Tensor:
        ctx.save_for_backward(margin, cutoff)
        ctx.rule = rule
        return codes.view_as(codes)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        margin, cutoff = ctx.saved_tensors
        return learn_through(grad_outputs[0], margin, ctx.rule, cutoff), None, None, None
