"""Initial parameters with which a coder fires at the wanted rate on its first batch.

With a zero bias a latent fires on half of the tokens. At that rate its entropy has zero slope.
Also, a 0/1 code does not carry the scale of its input. So scale, mean and quantiles are estimated
from the first batch. The coders of Cho et al. (arXiv 2509.20997) start at a firing rate of 1/2 and
stay there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding.decode import decode
from sae_binary_ext.coding.encode import binarise
from sae_binary_ext.coding.selection import CodeRule

INITIAL_THRESHOLD = 0.004  # as in the code of Quirke et al. (arXiv 2509.25596)
# This rate is far from 1/2, the firing rate at which entropy has zero slope.
THRESHOLD_STARTING_RATE = 0.02
# This rate is above k / latents, so that more than k margins of a token are positive. Started at k
# / latents = 0.007, topk coders ended with twice as many dead latents, and with FVU 0.275 instead
# of 0.266 (4608 latents, SmolLM2 layer 9).
PICKED_STARTING_RATE = 0.05
PART = 1024  # tokens whose codes are made at once
# Scale and quantiles need no more tokens than this, but a training step may have 65536.
MOST_TOKENS = 4096
# Tokens differ by more than float32's rounding if their standard deviation, divided by their root
# mean square, is above this.
LEAST_SPREAD = 1e-6


def starting_rate(rule: CodeRule, latents: int) -> float:
    """The firing rate that training starts at if a coder's config does not name one."""
    if rule.kind.uses_k:
        return max(PICKED_STARTING_RATE, rule.k / latents)
    return THRESHOLD_STARTING_RATE


def sample_rows(x: Tensor) -> Tensor:
    """At most MOST_TOKENS rows of x [tokens, d], evenly spread."""
    return x[:: -(-len(x) // MOST_TOKENS)]


def has_spread(x: Tensor) -> bool:
    """Whether tokens [tokens, d] differ by more than rounding. The check makes a GPU wait."""
    rows = x.double()
    spread = (rows - rows.mean(0)).square().sum()
    return bool(spread > LEAST_SPREAD**2 * rows.square().sum())


@dataclass(frozen=True)
class FittedStart:
    """Initial parameters fitted to a batch.

    Attributes:
        encoder_weight: [d_in, latents], the given weight rescaled so that pre-activations have unit
            standard deviation. Temperatures then mean the same at every input scale.
        encoder_bias: [latents]; each latent's margin is positive on the wanted share of tokens.
        decoder_weight: [latents, d_out], the transposed encoder scaled to the least squared error.
    """

    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor


@torch.no_grad()
def fit_start(
    centred: Tensor, encoder_weight: Tensor, log_threshold: Tensor, rule: CodeRule, rate: float
) -> FittedStart:
    """Initial parameters of an autoencoder whose latents fire at a given rate on a batch.

    The parameters are finite and have the dtype of encoder_weight; they are computed in float32. If
    all tokens are equal, they have no scale, and the encoder's directions get norm 1.

    Args:
        centred: [tokens, d_in], inputs minus the vector that the coder subtracts.
        encoder_weight: [d_in, latents], initial directions.
        log_threshold: [latents].
        rule: selection and surrogate.
        rate: wanted firing rate, between 0 and 1.
    """
    centred = sample_rows(centred).float()
    directions = encoder_weight.float()
    directions = directions / directions.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    projections = centred @ directions
    scale = projections.new_ones(())
    if len(projections) > 1:
        # Root mean square of the latents' standard deviations over tokens.
        spread = projections.std(dim=0).square().mean().sqrt()
        scale = torch.where(spread > torch.finfo(spread.dtype).tiny, spread, 1.0)
    directions = directions / scale
    projections /= scale

    # Put each threshold half way between the last token that fires and the first that does not.
    # Otherwise rounding would decide whether a token at the threshold fires.
    firing = max(min(max(round(rate * len(centred)), 1), len(centred) - 1), 0)
    around = projections.topk(firing + 1, dim=0).values[-2:]
    bias = log_threshold.float().exp() - around.mean(dim=0)
    del projections  # projections take as much memory as a training step

    # Decode part by part: the codes of all tokens would take as much memory as a training step.
    none = torch.zeros_like(centred[0])
    parts = [
        decode(binarise(rows @ directions + bias, log_threshold, rule), directions.T, none)
        for rows in centred.split(PART)
    ]
    reconstruction = torch.cat(parts)
    fit = (centred * reconstruction).sum() / reconstruction.square().sum().clamp_min(1e-12)
    dtype = encoder_weight.dtype
    return FittedStart(directions.to(dtype), bias.to(dtype), (directions.T * fit).to(dtype))


@torch.no_grad()
def fit_decoder(codes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder from codes [tokens, latents] to a target [tokens, d_out] unseen by the encoder.

    Each decoder row is the target's mean over the tokens on which its latent fires, minus the mean
    over all tokens. All rows are scaled by the one factor with the least squared error. Weight
    [latents, d_out] and bias [d_out] have the dtype of target; they are computed in float32.
    """
    codes, wanted = codes.float(), target.float()
    mean = wanted.mean(0)
    wanted = wanted - mean
    rows = codes.T @ wanted / codes.sum(0).clamp_min(1)[:, None]
    predicted = codes @ rows
    offset = predicted.mean(0)
    predicted = predicted - offset
    fit = (wanted * predicted).sum() / predicted.square().sum().clamp_min(1e-12)
    return (fit * rows).to(target.dtype), (mean - fit * offset).to(target.dtype)
