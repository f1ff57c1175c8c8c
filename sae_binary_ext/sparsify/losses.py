"""Losses of a binary coder in sparsify, in units of FVU."""

from dataclasses import replace

import torch
from torch import Tensor

from sae_binary_ext import coding
from sae_binary_ext.coding.forms import Encoded
from sae_binary_ext.coding.kernels import sum_over_ranks
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.sparsify.trainer_state import TrainingProgress


def regulariser(
    cfg: BinarySparseCoderConfig, progress: TrainingProgress, encoded: Encoded, rates: Tensor
) -> Tensor | None:
    """Weighted sum of the losses on codes alone: entropy, covariance and dense latents.

    Args:
        cfg: has the weights.
        progress: has the step, and the number of parts of the batch.
        encoded: codes of a part of the batch.
        rates: [latents], firing rates over all ranks.

    Returns:
        A scalar, or None if all are off. Summed over the parts of a batch, it is the mean of the
        parts' losses, as the parts' FVUs add up to the batch's.
    """
    share = coding.ramp(progress.step, cfg.entropy_start_step, cfg.entropy_warm_up_steps)
    losses: list[Tensor] = []
    if share and cfg.entropy_alpha:
        losses.append(share * cfg.entropy_alpha * coding.bernoulli_entropy(rates).sum())
    # A part of one token has no covariance.
    if share and cfg.covariance_alpha and (encoded.tokens > 1 or progress.group is not None):
        penalty = _covariance_penalty(cfg, progress, encoded.dense())
        losses.append(share * cfg.covariance_alpha * penalty)
    if cfg.dense_alpha:
        losses.append(cfg.dense_alpha * coding.excess_rate(rates, cfg.dense_rate))
    return torch.stack(losses).sum() / progress.parts if losses else None


def _covariance_penalty(
    cfg: BinarySparseCoderConfig, progress: TrainingProgress, codes: Tensor
) -> Tensor:
    if not cfg.covariance_sample:
        return coding.covariance_penalty(codes, progress.group)
    sample = cfg.covariance_sample
    return coding.sampled_covariance_penalty(codes, sample, progress.step, progress.group)


def summed_square(error: Tensor, progress: TrainingProgress) -> Tensor:
    """Squared error [tokens, d] summed over tokens of all ranks, in float32 or wider."""
    wide = error.to(torch.promote_types(error.dtype, torch.float32))
    return sum_over_ranks(wide.square().sum(), progress.group)


def multi_topk_error(
    pre: Tensor,
    target: Tensor,
    decoder: tuple[Tensor, Tensor],
    log_threshold: Tensor,
    rule: coding.CodeRule,
    progress: TrainingProgress,
) -> Tensor:
    """Summed squared error of codes with four times as many latents.

    Args:
        pre: pre-activations [tokens, latents].
        target: [tokens, d_in].
        decoder: weight [latents, d_in] and bias [d_in].
        log_threshold: [latents].
        rule: the coder's.
        progress: has the ranks.
    """
    wider = replace(rule, k=min(4 * rule.k, pre.shape[-1]))
    codes = coding.binarise(pre, log_threshold, wider)
    return summed_square(target - coding.decode(codes, *decoder), progress)


def batch_variance(
    y: Tensor, given: Tensor | None, progress: TrainingProgress, skipping: bool
) -> Tensor | None:
    """Variance by which the errors of a part of a batch are divided.

    Args:
        y: finite targets of the part, [tokens, d_in].
        given: sparsify's own variance of the batch, a scalar in the model's dtype. It overflows in
            float16, and is NaN if a token is not finite. None if y is the whole batch.
        progress: has the batch's variance or else its number of parts.
        skipping: tokens that are not finite are left out.

    Returns:
        A scalar summed over tokens, float32 or wider, or None if y is the whole batch.
    """
    narrow = given is not None and given.dtype.itemsize < torch.float32.itemsize
    known = progress.variance if narrow else given
    if known is not None and not skipping:
        return known
    estimate = progress.parts * coding.summed_variance(y, None) if given is not None else None
    if known is None or estimate is None:
        return estimate
    return torch.where(known.isfinite(), known, estimate)


def over_variance(error: Tensor, variance: Tensor) -> Tensor:
    """Summed squared error divided by summed variance.

    If the variance is 0 (one token, or equal tokens), the result is NaN and its gradient is 0, so
    that this batch spoils no weights.
    """
    known = variance > 0
    share = error / torch.where(known, variance, torch.inf)
    return share + torch.where(known, 0.0, torch.nan).to(share)
