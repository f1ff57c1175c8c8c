"""Losses of a binary coder beside the error of its reconstruction."""

from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext.coding import (
    bernoulli_entropy,
    binarise,
    covariance_penalty,
    decode,
    excess_rate,
    ramp,
    sampled_covariance_penalty,
    summed_variance,
)
from sae_binary_ext.coding.forms import Encoded
from sae_binary_ext.coding.kernels import sum_over_ranks
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.sparsify.trainer_state import TrainingProgress


def regulariser(
    cfg: BinarySparseCoderConfig, progress: TrainingProgress, encoded: Encoded, rates: Tensor
) -> Tensor | None:
    """Losses on the codes alone, weighted, in units of FVU.

    Args:
        cfg: has the weights.
        progress: the step, and into how many parts the batch is cut.
        encoded: codes of a part of the batch.
        rates: [latents], their firing rates over all ranks.

    Returns:
        A scalar, None where no such loss is in force. Summed over the parts of a batch it is the
        mean of the parts' losses: the parts' FVUs add up to that of the batch, too.
    """
    share = ramp(progress.step, cfg.entropy_start_step, cfg.entropy_warm_up_steps)
    losses: list[Tensor] = []
    if share and cfg.entropy_alpha:
        losses.append(share * cfg.entropy_alpha * bernoulli_entropy(rates).sum())
    # A part of one token has no covariance.
    if share and cfg.covariance_alpha and (encoded.tokens > 1 or progress.group is not None):
        penalty = _covariance_penalty(cfg, progress, encoded.dense())
        losses.append(share * cfg.covariance_alpha * penalty)
    if cfg.dense_alpha:
        losses.append(cfg.dense_alpha * excess_rate(rates, cfg.dense_rate))
    return torch.stack(losses).sum() / progress.parts if losses else None


def summed_square(error: Tensor, progress: TrainingProgress) -> Tensor:
    """Squared error [tokens, d] summed over tokens of all ranks, in float32 or wider."""
    wide = error.to(torch.promote_types(error.dtype, torch.float32))
    return sum_over_ranks(wide.square().sum(), progress.group)


def multi_topk_error(
    pre: Tensor,
    target: Tensor,
    decoder: tuple[Tensor, Tensor],
    log_threshold: Tensor,
    rule: CodeRule,
    progress: TrainingProgress,
) -> Tensor:
    """Summed squared error of codes with four times as many latents.

    Args:
        pre: [tokens, latents], pre-activations.
        target: [tokens, d_in].
        decoder: weight [latents, d_in] and bias [d_in].
        log_threshold: [latents].
        rule: of the coder.
        progress: the ranks.
    """
    wider = replace(rule, k=min(4 * rule.k, pre.shape[-1]))
    codes = binarise(pre, log_threshold, wider)
    return summed_square(target - decode(codes, *decoder), progress)


def batch_variance(
    y: Tensor, given: Tensor | None, progress: TrainingProgress, skipping: bool
) -> Tensor | None:
    """The variance that the errors of a part of a batch are compared with.

    Args:
        y: [tokens, d_in], finite targets of the part.
        given: scalar, what sparsify's Trainer took it to be: summed in the model's dtype, so that
            it overflows in float16, and NaN where any token was not finite. None: y is the batch.
        progress: may have the batch's variance, else knows how many such parts there are.
        skipping: tokens that are not finite are left out.

    Returns:
        A scalar summed over tokens, float32 or wider; None where y is the batch.
    """
    narrow = given is not None and given.dtype.itemsize < torch.float32.itemsize
    known = progress.variance if narrow else given
    if known is not None and not skipping:
        return known
    estimate = progress.parts * summed_variance(y, None) if given is not None else None
    if known is None or estimate is None:
        return estimate
    return torch.where(known.isfinite(), known, estimate)


def over_variance(error: Tensor, variance: Tensor) -> Tensor:
    """Summed squared error as a share of the summed variance.

    NaN where there is no variance: a share of nothing is not defined. Its gradient is zero then, so
    that such a batch, of one token or of equal ones, spoils no weights.
    """
    known = variance > 0
    share = error / torch.where(known, variance, torch.inf)
    return share + torch.where(known, 0.0, torch.nan).to(share)


def _covariance_penalty(
    cfg: BinarySparseCoderConfig, progress: TrainingProgress, codes: Tensor
) -> Tensor:
    if cfg.covariance_sample:
        return sampled_covariance_penalty(
            codes, cfg.covariance_sample, progress.step, progress.group
        )
    return covariance_penalty(codes, progress.group)
