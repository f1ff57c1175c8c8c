"""SAELens' estimates of scale and whitening, computed from finite tokens alone."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.training.finite import FiniteBatches

# The modes of normalize_activations whose statistics SAELens estimates before training.
SCALE, WHITENING = "expected_average_only_in", "covariance_whitening"
_NAMES = {
    SCALE: f"the activation scale (normalize_activations={SCALE!r})",
    WHITENING: f"the whitening (normalize_activations={WHITENING!r})",
}
# The fewest tokens that an estimate takes. A covariance needs two.
_FEWEST_TOKENS = {SCALE: 1, WHITENING: 2}


class FiniteScaler(ActivationScaler):
    """SAELens' scaler, with estimates that leave out tokens that are not finite, or refuse them."""

    def __init__(self, *, skip_non_finite: bool = False) -> None:
        super().__init__()
        self.skip_non_finite = skip_non_finite

    @override
    def estimate_scaling_factor(
        self, d_in: int, data_provider: Iterator[Tensor], n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """As SAELens', but ValueError for tokens that it cannot use, or if all are 0."""
        count = n_batches_for_norm_estimate
        self.scaling_factor = self.factor_of(d_in, self._finite(data_provider, SCALE, count), count)

    @override
    @torch.no_grad()
    def estimate_whitening(
        self,
        d_in: int,
        data_provider: Iterator[Tensor],
        n_batches_for_norm_estimate: int = 1000,
        eps: float = 1e-3,
    ) -> None:
        """As SAELens', but ValueError for tokens that it cannot use."""
        count = n_batches_for_norm_estimate
        batches = self._finite(data_provider, WHITENING, count)
        self.whitening = self.whitening_of(d_in, batches, count, eps)

    def factor_of(self, d_in: int, batches: Iterator[Tensor], count: int) -> Any:
        """The factor for count batches of [tokens, d_in]: a float, or PairFactors for pairs."""
        return mean_norm_factor(d_in, batches, count)

    def whitening_of(
        self, d_in: int, batches: Iterator[Tensor], count: int, eps: float
    ) -> ActivationWhitening:
        """The whitening for count batches of [tokens, d_in], in float64."""
        scaler = ActivationScaler()
        scaler.estimate_whitening(d_in, batches, count, eps)
        return cast(ActivationWhitening, scaler.whitening)

    def _finite(self, batches: Iterator[Tensor], mode: str, count: int) -> Iterator[Tensor]:
        skip, needed = self.skip_non_finite, _FEWEST_TOKENS[mode]
        return FiniteBatches(batches, _NAMES[mode], skip=skip, count=count, needed=needed)


def mean_norm_factor(width: int, batches: Iterator[Tensor], count: int) -> float:
    """The factor that brings tokens to a mean norm of sqrt(width); ValueError if there is none.

    batches yields activations [tokens, width], or their norms [tokens, 1].
    """
    scaler = ActivationScaler()
    try:
        scaler.estimate_scaling_factor(width, batches, count)
    except ZeroDivisionError:
        scaler.scaling_factor = None
    if not scaler.scaling_factor or not scaler.scaling_factor < float("inf"):
        raise ValueError(
            f"The estimate of {_NAMES[SCALE]} found no mean norm to divide by in {count} batches: "
            "their activations are all 0, or not finite. Look at the hook, at the model's dtype "
            "and at n_batches_for_norm_estimate."
        )
    return scaler.scaling_factor
