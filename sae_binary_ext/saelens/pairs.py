"""Pairs of activations of the same token: a transcoder's input and its target.

SAELens' trainers hand a coder one tensor a step. A pair therefore travels as one row, the input's
columns before the target's, and is shuffled, scaled and batched as one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.types import DataProvider
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.saelens.scaling import estimate_scale

# Under this name SAELens' multi-hook trainer finds the pairs in a batch.
PAIRS = "pairs"


class PairFactors(NamedTuple):
    """What inputs and targets are multiplied by."""

    input: float
    target: float


def split_pairs(pairs: Tensor, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Inputs [tokens, d_in] and targets [tokens, d_out] of pairs [tokens, d_in + d_out].

    Raises:
        ValueError: the rows are not d_in + d_out wide.
    """
    if pairs.shape[-1] != d_in + d_out:
        raise ValueError(
            f"pairs of shape {tuple(pairs.shape)}: a transcoder with d_in={d_in} and d_out={d_out} "
            f"trains on rows of both, {d_in + d_out} wide, as TranscoderTrainingRunner makes them."
        )
    return pairs[..., :d_in], pairs[..., d_in:]


def pair_batches(
    store: ActivationsStore, hook_name: str, hook_name_out: str
) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches of pairs, as SAELens' multi-hook trainer takes them.

    Args:
        store: captures both hooks; it shuffles them row for row.
        hook_name: where the inputs are read.
        hook_name_out: where the targets are read.

    Yields:
        PAIRS to [tokens, d_in + d_out].
    """
    for batch in store.get_multi_hook_data_loader():
        yield {PAIRS: torch.cat([batch[hook_name], batch[hook_name_out]], dim=1)}


def check_pairs(
    store: ActivationsStore, hook_name: str, hook_name_out: str, d_in: int, d_out: int
) -> None:
    """Read both hooks once, on made-up tokens.

    Raises:
        ValueError: the model does not pass through a hook, the hooks see different numbers of
            tokens, or an activation is not as wide as the coders.
    """
    device = next(iter(store.model.parameters())).device
    tokens = torch.zeros(2, store.context_size, dtype=torch.long, device=device)
    try:
        activations = store.get_multi_hook_activations(tokens)
    except KeyError as error:
        raise ValueError(
            f"hook {error.args[0]!r}: the model has such a hook and does not pass through it. Some "
            "hooks must be switched on: load the model yourself, switch the hook on, for instance "
            "with model.set_use_hook_mlp_in(True), and give the model to the runner as "
            "override_model."
        ) from error
    source, target = activations[hook_name], activations[hook_name_out]
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"hook_name={hook_name!r} and hook_name_out={hook_name_out!r} see different numbers of "
            f"tokens: activations of shapes {tuple(source.shape)} and {tuple(target.shape)} for "
            "the same text. A pair needs one row of each for every token."
        )
    for field, width, hook, activation in (
        ("d_in", d_in, hook_name, source),
        ("d_out", d_out, hook_name_out, target),
    ):
        if activation.shape[-1] != width:
            raise ValueError(
                f"{field}={width}: the activations at {hook!r} are {activation.shape[-1]} wide. "
                f"Give {field}={activation.shape[-1]}."
            )


class PairScaler(ActivationScaler):
    """SAELens' scaling of activations, for inputs and targets each on their own.

    scaling_factor holds PairFactors. whitening holds the mean and the block-diagonal matrices of
    the whole rows, so that SAELens' checkpoints keep it as they keep any other.
    """

    scaling_factor: PairFactors | None  # pyright: ignore

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.d_in = d_in

    @property
    def input(self) -> ActivationScaler:
        """Scales inputs alone, [..., d_in]."""
        factor = self.scaling_factor.input if self.scaling_factor else None
        return ActivationScaler(factor, self._whitening_of(slice(None, self.d_in)))

    @property
    def target(self) -> ActivationScaler:
        """Scales targets alone, [..., d_out]."""
        factor = self.scaling_factor.target if self.scaling_factor else None
        return ActivationScaler(factor, self._whitening_of(slice(self.d_in, None)))

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
        self, d_in: int, data_provider: DataProvider, n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """Factors that bring inputs and targets to a mean norm of the root of their width.

        Args:
            d_in: width of the inputs.
            data_provider: yields pairs, [tokens, d_in + d_out].
            n_batches_for_norm_estimate: how many batches to read.

        Raises:
            ValueError: inputs or targets are all 0, or one is not finite.
        """
        # Both in one pass over the model's activations: of a target its norm is kept, whose own
        # norm is itself.
        target_norms: list[Tensor] = []
        d_out = 0

        def inputs() -> Iterator[Tensor]:
            nonlocal d_out
            for pairs in data_provider:
                target = pairs[:, d_in:]
                d_out = target.shape[1]
                target_norms.append(target.norm(dim=-1, keepdim=True))
                yield pairs[:, :d_in]

        source = estimate_scale(d_in, inputs(), n_batches_for_norm_estimate)
        target = estimate_scale(d_out, iter(target_norms), n_batches_for_norm_estimate)
        self.scaling_factor = PairFactors(source, target)

    @override
    @torch.no_grad()
    def estimate_whitening(
        self,
        d_in: int,
        data_provider: DataProvider,
        n_batches_for_norm_estimate: int = 1000,
        eps: float = 1e-3,
    ) -> None:
        """Whitening of inputs and of targets, none across the two.

        Args:
            d_in: width of the inputs.
            data_provider: yields pairs, [tokens, d_in + d_out].
            n_batches_for_norm_estimate: how many batches to read; they are kept for the second of
                the two estimates.
            eps: SAELens' stabilising constant.
        """
        count = n_batches_for_norm_estimate
        batches = [next(data_provider) for _ in range(count)]
        d_out = batches[0].shape[1] - d_in
        parts = ActivationScaler(), ActivationScaler()
        parts[0].estimate_whitening(d_in, (pairs[:, :d_in] for pairs in batches), count, eps)
        parts[1].estimate_whitening(d_out, (pairs[:, d_in:] for pairs in batches), count, eps)
        blocks = [part.whitening for part in parts if part.whitening is not None]
        self.whitening = ActivationWhitening(
            mean=torch.cat([block.mean for block in blocks]),
            matrix=torch.block_diag(*(block.matrix for block in blocks)),
            inverse_matrix=torch.block_diag(*(block.inverse_matrix for block in blocks)),
        )

    @override
    def load(self, file_path: str | Path) -> None:
        """Read what save wrote."""
        super().load(file_path)
        if self.scaling_factor is not None:
            self.scaling_factor = PairFactors(*self.scaling_factor)  # pyright: ignore

    def _whitening_of(self, part: slice) -> ActivationWhitening | None:
        return None if self.whitening is None else whitening_part(self.whitening, part)


def whitening_part(whitening: ActivationWhitening, part: slice) -> ActivationWhitening:
    """One diagonal block of a block-diagonal whitening."""
    return ActivationWhitening(
        mean=whitening.mean[part],
        matrix=whitening.matrix[part, part],
        inverse_matrix=whitening.inverse_matrix[part, part],
    )
