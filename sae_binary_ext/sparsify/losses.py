"""Losses of a binary coder in sparsify, in units of FVU, and the Trainer's state for them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sae_binary_ext import coding
from sae_binary_ext.coding.forms import Encoded
from sae_binary_ext.coding.kernels import sum_over_ranks
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig


@dataclass
class TrainingProgress:
    """The Trainer's state that a coder's losses need. register.py keeps it up to date."""

    # Number of optimizer steps done.
    step: int = 0
    # The ranks that share a batch (DistributedDataParallel).
    group: ProcessGroup | None = None
    # Weight of the losses on codes in the gradient of the reconstruction, if training minimises the
    # model's loss (ce, kl). This weight is 0 if training minimises the FVU, which has them.
    regulariser_share: float = 0.0
    first_batch: bool = False
    # Whether the next batch sets the initial parameters.
    fit_start: bool = False
    # Tokens of the batch divided by tokens of the current part (micro_acc_steps), a number or a
    # scalar. The losses on codes are divided by this ratio, as the FVU is.
    parts: float | Tensor = 1.0
    # Variance summed over the tokens of the whole batch, or None if sparsify's is exact enough.
    variance: Tensor | None = None
    # Seed for sampling this batch's codes (gumbel_binary), because sparsify saves no random state.
    # If the seed is None, torch's own random state is used.
    noise_seed: int | None = None


def regulariser(
    cfg: BinarySparseCoderConfig,
    progress: TrainingProgress,
    encoded: Encoded,
    rates: Tensor,
    share: float,
) -> Tensor | None:
    """Weighted sum of the losses on codes alone (entropy, covariance, dense latents), a scalar.

    `share`, from 0 to 1, is the weight that the entropy and covariance losses have at this step.

    `encoded` has the codes of one part of a batch, and `rates` [latents] its firing rates over all
    ranks. The sum of the results over the parts is their mean loss. None if all losses are off.
    """
    losses: list[Tensor] = []
    if share and cfg.entropy_alpha:
        losses.append(share * cfg.entropy_alpha * coding.bernoulli_entropy(rates).sum())
    # Codes of a single token have no covariance.
    if share and cfg.covariance_alpha and (encoded.tokens > 1 or progress.group is not None):
        codes, sample, group = encoded.dense(), cfg.covariance_sample, progress.group
        if sample:
            penalty = coding.sampled_covariance_penalty(codes, sample, progress.step, group)
        else:
            penalty = coding.covariance_penalty(codes, group)
        losses.append(share * cfg.covariance_alpha * penalty)
    if cfg.dense_alpha:
        losses.append(cfg.dense_alpha * coding.excess_rate(rates, cfg.dense_rate))
    return torch.stack(losses).sum() / progress.parts if losses else None


def summed_square(error: Tensor, progress: TrainingProgress) -> Tensor:
    """Squared error [tokens, d] summed over tokens of all ranks, in float32 or wider."""
    wide = error.to(torch.promote_types(error.dtype, torch.float32))
    return sum_over_ranks(wide.square().sum(), progress.group)


def matryoshka_square(
    cfg: BinarySparseCoderConfig,
    progress: TrainingProgress,
    outputs: Iterable[Tensor],
    target: Tensor,
    whole: Tensor,
) -> Tensor:
    """Squared error summed over tokens of all ranks: its mean over the nested groups of latents.

    outputs: reconstructions [tokens, d] from fewer than all groups. target: what they should be.
    whole: the summed squared error from all groups.
    """
    parts = [summed_square(target - output, progress) for output in outputs]
    return torch.stack([*parts, whole]).sum() / cfg.matryoshka_groups


def batch_variance(
    y: Tensor, given: Tensor | None, progress: TrainingProgress, skipping: bool
) -> Tensor | None:
    """The variance that divides the squared error of finite targets y [tokens, d_in].

    `given` is sparsify's own variance of the batch if y is a part of it. `given` overflows in
    float16, and is NaN if a token is not finite, which `skipping` allows. Returns a scalar summed
    over tokens, in float32 or wider, or None if y is the whole batch.
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
    that this batch turns no weight into NaN.
    """
    known = variance > 0
    share = error / torch.where(known, variance, torch.inf)
    return share + torch.where(known, 0.0, torch.nan).to(share)
