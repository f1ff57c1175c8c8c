"""Where training starts: a coder that already fires at the wanted rate on its first batch.

The entropy of a latent has no slope at rate 1/2, where a zero bias puts it, and a step is blind
to the scale of its input. Both are cured by reading the scale, the mean and the quantiles off the
first batch. Cho et al. (arXiv 2509.20997) start at 1/2 and stay there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.coding.decode import decode
from sae_binary_ext.coding.encode import binarise
from sae_binary_ext.coding.selection import CodeRule

INITIAL_THRESHOLD = 0.004  # of the first paper's code
# Far from 1/2, where entropy has no slope.
THRESHOLD_STARTING_RATE = 0.02
# More candidates a token than k: started at k / latents = 0.007 instead, topk coders ended with
# twice as many dead latents and an FVU of 0.275 instead of 0.266 (4608 latents, SmolLM2 layer 9).
PICKED_STARTING_RATE = 0.05
# Tokens whose codes are made at once.
PART = 1024
# More tokens than this say no more about scale and quantiles, and a step of a host may bring 65536.
MOST_TOKENS = 4096
# Standard deviation of tokens beside their root mean square that is more than float32's rounding.
LEAST_SPREAD = 1e-6


def starting_rate(rule: CodeRule, latents: int) -> float:
    """Firing rate that a coder's biases start at where its config names none."""
    if rule.kind.uses_k:
        return max(PICKED_STARTING_RATE, rule.k / latents)
    return THRESHOLD_STARTING_RATE


def sample_rows(x: Tensor) -> Tensor:
    """At most MOST_TOKENS rows of x [tokens, d], evenly spread."""
    return x[:: -(-len(x) // MOST_TOKENS)]


def has_spread(x: Tensor) -> bool:
    """Whether a scale can be read off tokens [tokens, d], which differ by more than rounding.

    Reads on the host.
    """
    rows = x.double()
    spread = (rows - rows.mean(0)).square().sum()
    return bool(spread > LEAST_SPREAD**2 * rows.square().sum())


@dataclass(frozen=True)
class FittedStart:
    """Initial parameters read off a batch.

    Attributes:
        encoder_weight: [d_in, latents], the given one rescaled to unit standard deviation of the
            pre-activations, so that temperatures mean the same at every input scale.
        encoder_bias: [latents]; on the batch each margin is positive at the wanted rate.
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

    All are finite. Where the tokens are all the same, or there is one alone, they tell no scale,
    and the encoder's directions are given norm 1.

    Args:
        centred: [tokens, d_in], inputs minus what the coder subtracts.
        encoder_weight: [d_in, latents], initial directions.
        log_threshold: [latents].
        rule: selection and surrogate.
        rate: wanted firing rate, between 0 and 1.

    Returns:
        Parameters in the dtype of encoder_weight; the work is done in float32.
    """
    centred = sample_rows(centred).float()
    directions = encoder_weight.float()
    directions = directions / directions.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    projections = centred @ directions
    scale = _spread(projections)
    directions = directions / scale
    projections /= scale

    # Half way between the last token that fires and the first that does not: a token right at its
    # threshold would fire or not by rounding.
    firing = max(min(max(round(rate * len(centred)), 1), len(centred) - 1), 0)
    around = projections.topk(firing + 1, dim=0).values[-2:]
    bias = log_threshold.float().exp() - around.mean(dim=0)
    del projections  # as large as all that a training step makes

    # A part of the tokens at a time: all of their codes take as much memory as a training step.
    none = torch.zeros_like(centred[0])
    parts = [
        decode(binarise(rows @ directions + bias, log_threshold, rule), directions.T, none)
        for rows in centred.split(PART)
    ]
    reconstruction = torch.cat(parts)
    fit = (centred * reconstruction).sum() / reconstruction.square().sum().clamp_min(1e-12)
    dtype = encoder_weight.dtype
    return FittedStart(directions.to(dtype), bias.to(dtype), (directions.T * fit).to(dtype))


def _spread(projections: Tensor) -> Tensor:
    """Root mean square of the latents' standard deviations over tokens; 1 where it is 0."""
    if len(projections) < 2:
        return projections.new_ones(())
    spread = projections.std(dim=0).square().mean().sqrt()
    return torch.where(spread > torch.finfo(spread.dtype).tiny, spread, 1.0)


@torch.no_grad()
def fit_decoder(codes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder for codes whose encoder knows nothing of the target.

    Each row points to where the target lies on average when its latent fires, seen from its mean;
    one factor for all brings them to the least squared error.

    Args:
        codes: [tokens, latents], 0/1.
        target: [tokens, d_out].

    Returns:
        Decoder weight [latents, d_out] and bias [d_out], in the dtype of target; the work is done
        in float32.
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
