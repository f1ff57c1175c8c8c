"""Compares a surrogate's gradient of the encoder with changes of the true loss.

The loss is a staircase in the encoder: its derivative is 0 almost everywhere, and a surrogate
replaces it. The true loss is therefore measured over steps of finite size.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.coding import binarise
from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled

# Steps of a latent's bias, in standard deviations of its pre-activation.
BUMPS = (0.03, 0.1, 0.3, 1.0)
# Steps of the whole encoder against the gradient, by the share of the loss that they promise.
PROMISES = (0.01, 0.1)


@dataclass(frozen=True)
class Agreement:
    """A surrogate's gradient of encoder biases beside the loss's change over bumps of one size.

    Attributes:
        bump: size in standard deviations of a latent's pre-activation.
        moved: share of the probed latents whose bump changes the loss at all.
        cosine: cosine of the gradients with the changes per unit of bump, over probed latents.
        signs: share of latents for which both have the same sign, among those with neither 0.
    """

    bump: float
    moved: float
    cosine: Estimate
    signs: Estimate


@dataclass(frozen=True)
class GradientFigures:
    """A coder's surrogate gradient on a batch. The loss is the mean squared error per token.

    Attributes:
        fvu: squared error over total variance.
        latents: share of latents whose bias has a gradient.
        weight_norm, bias_norm: norms of the gradients of W_enc and b_enc, in loss per unit of the
            parameter.
        agreements: one for each size of bump.
        kept: for each of PROMISES, the fall of the loss over the fall that the gradient promises;
            negative if the loss rises.
    """

    fvu: float
    latents: float
    weight_norm: float
    bias_norm: float
    agreements: list[Agreement]
    kept: dict[float, float]


def probe_gradients(coder: Any, x: Tensor, probed: int, seed: int) -> GradientFigures:
    """Measure a coder's surrogate gradient against its true loss.

    Args:
        coder: a binary autoencoder in training; it is not changed.
        x: [tokens, d_in], scaled as in training.
        probed: number of latents to bump, drawn from those that fire on these tokens.
        seed: for drawing them.
    """
    with torch.enable_grad():
        codes, _ = coder.encode_with_hidden_pre(x)
        loss = (coder.decode(codes) - x).square().sum(1).mean()
        weight, bias = torch.autograd.grad(loss, [coder.W_enc, coder.b_enc])
    with torch.no_grad():
        fired = (codes != 0).any(0).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        latents = fired[torch.randperm(len(fired), generator=generator)[:probed].to(fired.device)]
        deviations = coder.codes_and_pre_activations(x, noise=False)[1].std(0)
        agreements = [
            _agreement(bump, bias[latents], loss_slopes(coder, x, latents, bump * deviations))
            for bump in BUMPS
        ]
        variance = (x - x.mean(0)).square().sum(1).mean()
        return GradientFigures(
            (loss / variance).item(),
            (bias != 0).double().mean().item(),
            weight.norm().item(),
            bias.norm().item(),
            agreements,
            {share: _kept(coder, x, loss, weight, bias, share) for share in PROMISES},
        )


def loss_slopes(coder: Any, x: Tensor, latents: Tensor, bumps: Tensor) -> Tensor:
    """Slope of the loss in the biases of single latents, over steps of finite size.

    (L(b + bump) - L(b - bump)) / (2 bump), with codes selected anew each time.

    Args:
        coder: a binary autoencoder.
        x: [tokens, d_in].
        latents: int64 [probed], the latents to bump.
        bumps: [d_sae], positive size of each latent's step.

    Returns:
        float64 [probed], in loss per unit of the bias.
    """
    codes, pre = coder.codes_and_pre_activations(x, noise=False)
    error = (coder.decode(codes) - x).double()
    rows = coder.W_dec.double()

    def change(latent: int, bump: Tensor) -> Tensor:
        bumped = pre.clone()
        bumped[:, latent] += bump
        difference = binarise(bumped, coder.log_threshold, coder.rule, False) - codes
        tokens = difference.any(1)
        before = error[tokens]
        after = before + difference[tokens].double() @ rows
        return (after.square().sum() - before.square().sum()) / len(x)

    slopes = [
        (change(latent, bumps[latent]) - change(latent, -bumps[latent])) / (2 * bumps[latent])
        for latent in latents.tolist()
    ]
    return torch.stack(slopes).double().cpu()


def _agreement(bump: float, gradient: Tensor, slopes: Tensor) -> Agreement:
    gradient = gradient.double().cpu()
    drawn = resampled(len(slopes))
    one, other = gradient[drawn], slopes[drawn]
    both = (one * other).sum(1)
    known = (one != 0) & (other != 0)
    alike = (one.sign() == other.sign()) & known
    return Agreement(
        bump,
        (slopes != 0).double().mean().item(),
        estimate_of(both / (one.norm(dim=1) * other.norm(dim=1))),
        estimate_of(alike.sum(1) / known.sum(1)),
    )


def _kept(coder: Any, x: Tensor, loss: Tensor, weight: Tensor, bias: Tensor, share: float) -> float:
    """Fall of the loss over the promised fall, for a step that promises this share of the loss."""
    size = share * loss / (weight.square().sum() + bias.square().sum())
    # A copy: the coder keeps its weights bit for bit.
    moved = copy.copy(coder)
    moved._parameters = dict(coder._parameters)
    moved._parameters["W_enc"] = torch.nn.Parameter(coder.W_enc - size * weight)
    moved._parameters["b_enc"] = torch.nn.Parameter(coder.b_enc - size * bias)
    after = (moved.decode(moved.encode(x)) - x).square().sum(1).mean()
    return ((loss - after) / (share * loss)).item()
