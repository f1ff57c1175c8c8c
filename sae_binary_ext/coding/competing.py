"""topk whose latents compete for its places (surrogate_latents "all" and "near").

The k latents that fire are those whose margin exceeds the token's cutoff, and a soft count of the
latents around the cutoff stands for k: with p_j = sigmoid((margin_j - cutoff) / T), or another
surrogate's, and their sum held fixed, the cutoff moves with the margins by
d cutoff = sum_j p'_j d margin_j / sum_j p'_j. So a latent's gradient is

    d L / d margin_j = p'_j (g_j - sum_i p'_i g_i / sum_i p'_i),   g_j = d L / d code_j:

what gains by firing comes up and pushes out what gains less. A token with fewer than k positive
margins has room left: its cutoff stays at 0 and p'_j g_j remains, as with selection threshold.

With "all", j runs over all latents; with "near", over those of the 2k largest margins, and no
other learns from the token.
"""

from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding.selection import (
    CodeRule,
    pick_and_next,
    pick_latents,
    scatter_codes,
)
from sae_binary_ext.coding.surrogate import SURROGATES


def find_cutoff(picked: Tensor, latents: int) -> Tensor:
    """The least margin that fires, or 0 where k leaves room.

    Args:
        picked: [..., k], the margins of the picked latents.
        latents: how many compete; as many as are picked leave none to compete with.

    Returns:
        [..., 1], at least 0.
    """
    if picked.shape[-1] == latents:
        return torch.zeros_like(picked[..., :1])
    return picked.amin(-1, keepdim=True).clamp_min(0)


def learn_through(
    gradient: Tensor, margin: Tensor, rule: CodeRule, cutoff: Tensor | None
) -> Tensor:
    """Gradient of the margins, of the gradient of the codes.

    Args:
        gradient: [..., latents], of the codes.
        margin: [..., latents].
        rule: its surrogate.
        cutoff: [..., 1], see find_cutoff; None where each latent learns for itself.
    """
    slope = SURROGATES[rule.surrogate].slope
    if cutoff is None:
        return gradient * slope(margin, rule.surrogate_temperature)
    weight = slope(margin - cutoff, rule.surrogate_temperature)
    learns = gradient * weight
    # Where k binds, the latent at the cutoff has a slope with every surrogate.
    shared = learns.sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return learns.addcmul_(weight, torch.where(cutoff > 0, shared, 0), value=-1)


def competing_codes(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes [..., latents] of margins [..., latents]: those of topk, with the gradient above."""
    latents = margin.shape[-1]
    if not rule.every_latent_learns:
        _, index = pick_and_next(margin.detach().clone(), rule, rule.next_learners(latents))
        return scatter_codes(compete_near(margin.gather(-1, index), rule), index, latents)
    picked, index = pick_latents(margin.detach(), rule)
    codes = scatter_codes((picked > 0).to(margin.dtype), index, latents)
    return _Competing.apply(margin, codes, find_cutoff(picked, latents), rule)  # pyright: ignore


def compete_near(margin: Tensor, rule: CodeRule) -> Tensor:
    """Codes of the latents near to firing, with the gradient above, in which no others take part.

    Args:
        margin: [..., m], the k picked first (see pick_and_next).
        rule: k and the surrogate.

    Returns:
        [..., m], 1.0 for the picked where they are positive, else 0.0.
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
