"""SAELens' estimates of scale and whitening, made of the tokens that are finite."""

from collections.abc import Iterator

import torch
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.types import DataProvider
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.training.finite import finite_tokens

# The modes of normalize_activations whose statistics SAELens estimates before training.
SCALE, WHITENING = "expected_average_only_in", "covariance_whitening"
_NAMES = {
    SCALE: f"the activation scale (normalize_activations={SCALE!r})",
    WHITENING: f"the whitening (normalize_activations={WHITENING!r})",
}
# Tokens that an estimate takes at least: two for a covariance.
_FEWEST_TOKENS = {SCALE: 1, WHITENING: 2}


def finite_batches(
    batches: Iterator[Tensor], mode: str, count: int, *, skip_non_finite: bool
) -> Iterator[Tensor]:
    """What an estimate reads.

    Args:
        batches: yields [tokens, width].
        mode: SCALE or WHITENING.
        count: how many batches the estimate reads.
        skip_non_finite: leave tokens out that are not finite, instead of stopping.
    """
    return finite_tokens(
        batches, _NAMES[mode], skip=skip_non_finite, count=count, needed=_FEWEST_TOKENS[mode]
    )


def estimate_scale(d_in: int, batches: Iterator[Tensor], count: int) -> float:
    """What activations are multiplied by, so that their mean norm is the root of their width.

    Args:
        d_in: the width.
        batches: yields [tokens, d_in], or norms [tokens, 1].
        count: how many batches to read.

    Raises:
        ValueError: the mean norm is 0, infinite or no number.
    """
    scaler = ActivationScaler()
    try:
        scaler.estimate_scaling_factor(d_in, batches, count)
    except ZeroDivisionError:
        scaler.scaling_factor = None
    if not scaler.scaling_factor or not scaler.scaling_factor < float("inf"):
        raise ValueError(
            f"The estimate of {_NAMES[SCALE]} found no mean norm to divide by in {count} batches: "
            "their activations are all 0, or not finite. Look at the hook, at the model's dtype "
            "and at n_batches_for_norm_estimate."
        )
    return scaler.scaling_factor


class FiniteScaler(ActivationScaler):
    """SAELens' scaler, whose estimates leave tokens out that are not finite, or stop at them."""

    def __init__(self, *, skip_non_finite: bool) -> None:
        super().__init__()
        self.skip_non_finite = skip_non_finite

    @override
    def estimate_scaling_factor(
        self, d_in: int, data_provider: DataProvider, n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """As SAELens'.

        Raises:
            ValueError: a token is not finite and is not to be skipped, none is left, or all are 0.
        """
        count = n_batches_for_norm_estimate
        batches = self._finite(data_provider, SCALE, count)
        self.scaling_factor = estimate_scale(d_in, batches, count)

    @override
    @torch.no_grad()
    def estimate_whitening(
        self,
        d_in: int,
        data_provider: DataProvider,
        n_batches_for_norm_estimate: int = 1000,
        eps: float = 1e-3,
    ) -> None:
        """As SAELens'.

        Raises:
            ValueError: a token is not finite and is not to be skipped, or fewer than two are left.
        """
        count = n_batches_for_norm_estimate
        batches = self._finite(data_provider, WHITENING, count)
        super().estimate_whitening(d_in, batches, count, eps)

    def _finite(self, batches: Iterator[Tensor], mode: str, count: int) -> Iterator[Tensor]:
        return finite_batches(batches, mode, count, skip_non_finite=self.skip_non_finite)
