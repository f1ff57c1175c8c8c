"""Pairs of activations of the same token, and the scaling of pairs and of single activations.

A pair is a transcoder's input and its target. SAELens' trainers give a coder one tensor in each
step. So a pair is stored as one row: first the columns of the input, then those of the target. Each
row is shuffled, scaled and batched as a whole. Scales are estimated from finite tokens only.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import torch
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.training.finite import finite_tokens

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


def norms_of_pairs(pairs: Tensor, d_in: int) -> Tensor:
    """Norms of inputs and of targets, [tokens, 2] in float32 or wider; NaN if either has a NaN."""
    # In float16, a norm can overflow.
    wide = pairs.to(torch.promote_types(pairs.dtype, torch.float32))
    return torch.stack([wide[:, :d_in].norm(dim=-1), wide[:, d_in:].norm(dim=-1)], dim=1)


def split_pairs(pairs: Tensor, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Inputs [tokens, d_in] and targets [tokens, d_out] of pairs; ValueError for another width."""
    if pairs.shape[-1] != d_in + d_out:
        raise ValueError(
            f"pairs of shape {tuple(pairs.shape)}: a transcoder with d_in={d_in} and d_out={d_out} "
            f"trains on rows of both, {d_in + d_out} wide, as TranscoderTrainingRunner makes them."
        )
    return pairs[..., :d_in], pairs[..., d_in:]


class HookPair(NamedTuple):
    """The hooks of a transcoder's input and of its target."""

    hook_name: str
    hook_name_out: str

    @property
    def name(self) -> str:
        """The name of the pairs of these hooks in a batch."""
        return f"{self.hook_name} to {self.hook_name_out}"


def pair_batches(store: ActivationsStore, hooks: Iterable[HookPair]) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches of a store: pairs [tokens, d_in + d_out] by the name of their hooks."""
    hooks = tuple(hooks)
    for batch in store.get_multi_hook_data_loader():
        yield {pair.name: torch.cat([batch[hook] for hook in pair], dim=1) for pair in hooks}


def check_pairs(store: ActivationsStore, widths: Mapping[HookPair, tuple[int, int]]) -> None:
    """Raise ValueError if hooks give no pairs of the widths (d_in, d_out). Reads two rows."""
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
    for hooks, expected in widths.items():
        shapes = [tuple(activations[hook].shape) for hook in hooks]
        if shapes[0][:2] != shapes[1][:2]:
            raise ValueError(
                f"hook_name={hooks[0]!r} and hook_name_out={hooks[1]!r} see different numbers of "
                f"tokens: for the same text, their activations have shapes {shapes[0]} and "
                f"{shapes[1]}. Give two hooks with one row for each token."
            )
        fields = zip(("d_in", "d_out"), hooks, shapes, expected, strict=True)
        for field, hook, (*_, found), width in fields:
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
        self.scaling_factor = mean_norm_factor(
            d_in, self._finite(data_provider, SCALE, count), count
        )

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
    def estimate_scaling_factor(
        self, d_in: int, data_provider: Iterator[Tensor], n_batches_for_norm_estimate: int = 1000
    ) -> None:
        rows = list(islice(data_provider, n_batches_for_norm_estimate))
        widths = d_in, rows[0].shape[1] - d_in
        norms = (norms_of_pairs(pairs, d_in) for pairs in rows)
        self.estimate_from_norms(widths, norms, n_batches_for_norm_estimate)

    def estimate_from_norms(
        self, widths: tuple[int, int], norms: Iterator[Tensor], count: int
    ) -> None:
        """Estimate both factors from count batches of norms_of_pairs; widths are d_in, d_out."""
        finite = list(self._finite(norms, SCALE, count))
        self.scaling_factor = PairFactors(
            *(
                mean_norm_factor(width, (rows[:, side, None] for rows in finite), count)
                for side, width in enumerate(widths)
            )
        )

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
