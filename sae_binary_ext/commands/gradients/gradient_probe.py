"""What a surrogate says of a step of the encoder, and what the step does to the true loss.

The loss as a function of the encoder is a staircase: its derivative is 0 almost everywhere, and a
surrogate stands in for it. What a step does is therefore measured by steps of a size that matters.
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
# Steps of the whole encoder against the gradient, by the share of the loss that they should take.
PROMISES = (0.01, 0.1)


@dataclass(frozen=True)
class Agreement:
    """A surrogate's gradient of encoder biases beside the loss's change over bumps of one size.

    Attributes:
        bump: in standard deviations of a latent's pre-activation.
        moved: share of the probed latents whose bump changes the loss at all.
        cosine: of the gradients of all probed latents with the changes a unit of bump.
        signs: share of latents of which both go the same way, of those where neither is 0.
    """

    bump: float
    moved: float
    cosine: Estimate
    signs: Estimate


@dataclass(frozen=True)
class GradientFigures:
    """A coder's surrogate gradient on a batch. The loss is the mean squared error a token.

    Attributes:
        fvu: squared error over total variance.
        latents: share of latents whose bias has a gradient.
        weight_norm, bias_norm: of the gradients of W_enc and b_enc, in units of the loss a unit of
            the parameter.
        agreements: by size of bump.
        kept: of PROMISES, the share that a step against the gradient keeps of what it promises:
            1 where the loss falls as the gradient says, below 0 where it rises.
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
        coder: a binary autoencoder in training, changed in nothing.
        x: [tokens, d_in], as the coder is trained on it.
        probed: latents whose bias is bumped, drawn from those that fire on these tokens.
        seed: of the draw.
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
    """How the loss changes with the biases of single latents, over steps of a given size.

    (L(b + bump) - L(b - bump)) / (2 bump), codes selected anew each time.

    Args:
        coder: a binary autoencoder.
        x: [tokens, d_in].
        latents: int64 [probed], which.
        bumps: [d_sae], the size of the step of each latent, positive.

    Returns:
        float64 [probed], in units of the loss a unit of the bias.
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
    """Of a step that should take this share of the loss, what it takes of that."""
    size = share * loss / (weight.square().sum() + bias.square().sum())
    # A copy of the weights: those of the coder stay to the last bit.
    moved = copy.copy(coder)
    moved._parameters = dict(coder._parameters)
    moved._parameters["W_enc"] = torch.nn.Parameter(coder.W_enc - size * weight)
    moved._parameters["b_enc"] = torch.nn.Parameter(coder.b_enc - size * bias)
    after = (moved.decode(moved.encode(x)) - x).square().sum(1).mean()
    return ((loss - after) / (share * loss)).item()
