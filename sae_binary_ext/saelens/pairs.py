"""Pairs of activations of the same token, and the scaling of pairs and of single activations.

A pair is a transcoder's input and its target. SAELens' trainers give a coder one tensor in each
step. So a pair is stored as one row: first the columns of the input, then those of the target. Each
row is shuffled, scaled and batched as a whole. Scales are estimated from finite tokens only.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.training.finite import finite_tokens

# SAELens' multi-hook trainer finds the pairs in a batch by this name.
PAIRS = "pairs"
# The modes of normalize_activations whose statistics SAELens estimates before training.
SCALE, WHITENING = "expected_average_only_in", "covariance_whitening"
_NAMES = {
    SCALE: f"the activation scale (normalize_activations={SCALE!r})",
    WHITENING: f"the whitening (normalize_activations={WHITENING!r})",
}
# Minimum number of tokens for each estimate. A covariance needs two.
_FEWEST_TOKENS = {SCALE: 1, WHITENING: 2}


class PairFactors(NamedTuple):
    """The factors that inputs and targets are multiplied by."""

    input: float
    target: float


def split_pairs(pairs: Tensor, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Inputs [tokens, d_in] and targets [tokens, d_out] of pairs; ValueError for another width."""
    if pairs.shape[-1] != d_in + d_out:
        raise ValueError(
            f"pairs of shape {tuple(pairs.shape)}: a transcoder with d_in={d_in} and d_out={d_out} "
            f"trains on rows of both, {d_in + d_out} wide, as TranscoderTrainingRunner makes them."
        )
    return pairs[..., :d_in], pairs[..., d_in:]


def pair_batches(
    store: ActivationsStore, hook_name: str, hook_name_out: str
) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches {PAIRS: [tokens, d_in + d_out]} of a store that captures both hooks."""
    for batch in store.get_multi_hook_data_loader():
        yield {PAIRS: torch.cat([batch[hook_name], batch[hook_name_out]], dim=1)}


def check_pairs(
    store: ActivationsStore, hook_name: str, hook_name_out: str, d_in: int, d_out: int
) -> None:
    """Raise ValueError if the two hooks give no pairs of this width. Runs the model on two rows."""
    device = next(iter(store.model.parameters())).device
    tokens = torch.zeros(2, store.context_size, dtype=torch.long, device=device)
    try:
        activations = store.get_multi_hook_activations(tokens)
    except KeyError as error:
        raise ValueError(
            f"hook {error.args[0]!r}: the model has this hook but does not pass through it. Some "
            "hooks are off by default. Load the model yourself, switch the hook on, for example "
            "with model.set_use_hook_mlp_in(True), and give the model to the runner as "
            "override_model."
        ) from error
    source, target = activations[hook_name], activations[hook_name_out]
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"hook_name={hook_name!r} and hook_name_out={hook_name_out!r} see different numbers of "
            f"tokens: for the same text, their activations have shapes {tuple(source.shape)} and "
            f"{tuple(target.shape)}. Give two hooks with one row for each token."
        )
    for field, width, hook in (("d_in", d_in, hook_name), ("d_out", d_out, hook_name_out)):
        found = activations[hook].shape[-1]
        if found != width:
            raise ValueError(
                f"{field}={width}: the activations at {hook!r} are {found} wide. Give "
                f"{field}={found}."
            )


class FiniteScaler(ActivationScaler):
    """SAELens' scaler; its estimates skip tokens that are not finite, or raise an error."""

    def __init__(self, *, skip_non_finite: bool = False) -> None:
        super().__init__()
        self.skip_non_finite = skip_non_finite

    @override
    def estimate_scaling_factor(
        self, d_in: int, data_provider: Iterator[Tensor], n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """As SAELens', but ValueError for non-finite tokens (unless skipped), or if all are 0."""
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
        """As SAELens', but ValueError for non-finite tokens (unless skipped)."""
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
        return finite_tokens(batches, _NAMES[mode], skip=skip, count=count, needed=needed)


def mean_norm_factor(width: int, batches: Iterator[Tensor], count: int) -> float:
    """sqrt(width) / mean norm of activations or of given norms; ValueError if not finite."""
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


class PairScaler(FiniteScaler):
    """Scales the inputs and the targets of pairs separately.

    scaling_factor is a PairFactors. whitening has block-diagonal matrices for whole rows, so that
    SAELens can save it as usual.
    """

    scaling_factor: PairFactors | None  # pyright: ignore

    def __init__(self, d_in: int, *, skip_non_finite: bool = False) -> None:
        super().__init__(skip_non_finite=skip_non_finite)
        self.d_in = d_in

    @property
    def input(self) -> ActivationScaler:
        """Scales inputs alone, [..., d_in]."""
        return self._part(0, slice(None, self.d_in))

    @property
    def target(self) -> ActivationScaler:
        """Scales targets alone, [..., d_out]."""
        return self._part(1, slice(self.d_in, None))

    @override
    def scale(self, acts: Tensor) -> Tensor:
        source, target = acts[..., : self.d_in], acts[..., self.d_in :]
        return torch.cat([self.input.scale(source), self.target.scale(target)], dim=-1)

    @override
    def unscale(self, acts: Tensor) -> Tensor:
        source, target = acts[..., : self.d_in], acts[..., self.d_in :]
        return torch.cat([self.input.unscale(source), self.target.unscale(target)], dim=-1)

    @override
    def factor_of(self, d_in: int, batches: Iterator[Tensor], count: int) -> PairFactors:
        # The model runs only once, so keep the targets' norms. A norm's own norm is unchanged.
        norms: list[Tensor] = []
        d_out = 0

        def inputs() -> Iterator[Tensor]:
            nonlocal d_out
            for pairs in batches:
                target = pairs[:, d_in:]
                d_out = target.shape[1]
                norms.append(target.norm(dim=-1, keepdim=True))
                yield pairs[:, :d_in]

        factor = mean_norm_factor(d_in, inputs(), count)
        return PairFactors(factor, mean_norm_factor(d_out, iter(norms), count))

    @override
    def whitening_of(
        self, d_in: int, batches: Iterator[Tensor], count: int, eps: float
    ) -> ActivationWhitening:
        rows, whitening_of = list(islice(batches, count)), super().whitening_of
        parts = [pairs[:, :d_in] for pairs in rows], [pairs[:, d_in:] for pairs in rows]
        blocks = [whitening_of(part[0].shape[1], iter(part), count, eps) for part in parts]
        return ActivationWhitening(
            mean=torch.cat([block.mean for block in blocks]),
            matrix=torch.block_diag(*(block.matrix for block in blocks)),
            inverse_matrix=torch.block_diag(*(block.inverse_matrix for block in blocks)),
        )

    @override
    def load(self, file_path: str | Path) -> None:
        super().load(file_path)
        if self.scaling_factor is not None:
            self.scaling_factor = PairFactors(*self.scaling_factor)

    def _part(self, side: int, columns: slice) -> ActivationScaler:
        return ActivationScaler(
            self.scaling_factor and self.scaling_factor[side],
            self.whitening and whitening_part(self.whitening, columns),
        )


def whitening_part(whitening: ActivationWhitening, part: slice) -> ActivationWhitening:
    """One diagonal block of a block-diagonal whitening."""
    return ActivationWhitening(
        whitening.mean[part], whitening.matrix[part, part], whitening.inverse_matrix[part, part]
    )
