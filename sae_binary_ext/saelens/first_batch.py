"""Training classes that read their start off the first batch and notice what goes wrong."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checks import check_training_dtype
from sae_binary_ext.coding.initialization import has_spread
from sae_binary_ext.saelens.resuming import ActivationScale, folded_scale
from sae_binary_ext.saving import replacing
from sae_binary_ext.training.collapse import CollapseWatch
from sae_binary_ext.training.fields import FiniteFields
from sae_binary_ext.training.finite import (
    FiniteRows,
    FiniteWatch,
    check_parameters,
    non_finite_loss,
)
from sae_binary_ext.training.untouched import InitialParameters

logger = logging.getLogger(__name__)

# Tokens that a start is read off at least: smaller batches are put together.
FEWEST_TOKENS = 32


@dataclass
class TrainingFields(FiniteFields):
    """What all training configs of this package share: the field of FiniteFields.

    Skipped tokens are left out of the estimates before training too, and are counted in the metric
    skipped_tokens.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """A config of a to_dict(), or of the cfg.json of a coder that training saved.

        SAELens saves a coder for inference under another architecture, without the fields that only
        training reads, and keeps both in its metadata.
        """
        metadata = config_dict.get("metadata") or {}
        trained_as = str(metadata.get("training_architecture"))
        _, config_class = SAE_TRAINING_CLASS_REGISTRY.get(trained_as, (None, type(None)))
        if issubclass(config_class, cls):
            details = metadata.get("training_architecture_details") or {}
            config_dict = {**details, **config_dict, "architecture": trained_as}
        return super().from_dict(config_dict)  # pyright: ignore


def fired_rates(codes: Tensor) -> Tensor:
    """Firing rate of each latent, float32 [d_sae], of codes [tokens, d_sae], sparse or dense."""
    return codes.bool().float().sum(0).to_dense() / len(codes)


class FirstBatchTrainingSAE(TrainingSAE[Any]):
    """A coder in training whose first batch sets its parameters, unless somebody has set them.

    Loading weights counts as setting, and so does any change of a parameter by hand: all of them
    then stay as they are. To set some of them and start the others from data, call
    fit_to_first_batch first.

    Attributes:
        scale: what the weights were trained in, if they were loaded from a run under way.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        self._starts_fresh = True
        # Tokens of batches that were too small or too much alike to start from.
        self._tokens_so_far: Tensor | None = None
        self._initial: InitialParameters | None = None
        self.scale: ActivationScale | None = None
        self._folded: ActivationScale | None = None
        self._watch = FiniteWatch()
        self._loss_watch = FiniteWatch(non_finite_loss)
        self._finite_rows = FiniteRows()
        self._collapse_watch = CollapseWatch()
        super().__init__(cfg, use_error_term)
        self._remember_start()

    @abstractmethod
    def fit_to_first_batch(self, batch: Tensor) -> None:
        """Set the initial parameters in place.

        Args:
            batch: [tokens, ...], what the trainer hands to a step.
        """

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        step_input = self._before_step(step_input)  # pyright: ignore
        output = self.step_losses(step_input)
        if self.cfg.skip_non_finite:
            output.metrics["skipped_tokens"] = self._finite_rows.skipped
        self._after_step(step_input, output)  # pyright: ignore
        return output

    def step_losses(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Losses of a batch of finite tokens, as SAELens' own step returns them."""
        return super().training_forward_pass(step_input)

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._starts_fresh = False
        return super().load_state_dict(*args, **kwargs)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Take a checkpoint's weights, in the scale that training works in.

        Raises:
            ValueError: it was saved after training, and does not tell the scale that was folded in.
        """
        folded = folded_scale(Path(checkpoint_path), self.cfg)
        super().load_weights_from_checkpoint(checkpoint_path)
        if folded is not None:
            folded.take_from(self)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: Any) -> None:
        """As SAELens'; checkpoints keep the factor, so that training can go on from them."""
        mode = self.cfg.normalize_activations
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self._folded = ActivationScale.of_factor(mode, scaling_factor)

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        """As SAELens'; checkpoints keep the whitening, so that training can go on from them."""
        mode = self.cfg.normalize_activations
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self._folded = ActivationScale.of_whitening(
            mode, mean, whitening_matrix, unwhitening_matrix
        )

    def give_scale_to(self, scaler: ActivationScaler) -> None:
        """Let a trainer scale activations as the training did that the weights are from."""
        if self.scale is not None and self.scale.mode == self.cfg.normalize_activations:
            self.scale.give_to(scaler)

    @property
    def folded(self) -> ActivationScale | None:
        """What the end of training has folded into the weights, if it has."""
        return self._folded

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        self.check_saveable()
        super().process_state_dict_for_saving(state_dict)

    def check_saveable(self) -> None:
        """Raise ValueError where a step or a parameter was not finite; waits for a GPU."""
        self._watch.check_now()
        self._loss_watch.check_now()
        check_parameters(self.named_parameters())

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the coder for inference, weights and config at once; returns their paths.

        Raises:
            ValueError: a parameter is not finite; nothing is written then.
        """
        self.check_saveable()
        with replacing(Path(path)) as new:
            weights, config = super().save_inference_model(new)
        return Path(path) / weights.name, Path(path) / config.name

    # Reads data on the host, which a compiled step (compile_sae) must not trace.
    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    def _before_step(self, step_input: TrainStepInput) -> TrainStepInput:
        step = step_input.n_training_steps
        values = self._what_must_be_finite(step_input.sae_in)
        if self.cfg.skip_non_finite:
            rows = self._finite_rows.of(values, step=step)
            if rows is not None:
                step_input = replace(step_input, sae_in=step_input.sae_in[rows])
        else:
            self._watch.check(values, step)
        if self._starts_fresh:
            self._start_from(step_input.sae_in)
        return step_input

    def _what_must_be_finite(self, batch: Tensor) -> Tensor:
        if self.cfg.normalize_activations != "constant_norm_rescale":
            return batch
        # A token of norm 0 has no factor that brings it to another.
        return batch / batch[:, : self.cfg.d_in].norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def _start_from(self, batch: Tensor) -> None:
        """Start from the batches so far, once they tell a scale and nobody has set parameters."""
        if self._tokens_so_far is None:
            check_training_dtype(str(self.dtype))
            changed = self._changed_parameters()
            if changed:
                logger.warning(
                    "%s set by hand: training starts from all parameters as they are. To start the "
                    "others from data, call fit_to_first_batch(batch) before setting yours.",
                    ", ".join(changed),
                )
                self._starts_fresh = False
                return
            self._tokens_so_far = batch[:0]
        tokens = torch.cat([self._tokens_so_far, batch])
        if len(tokens) < FEWEST_TOKENS:
            self._tokens_so_far = tokens
        elif self._tells_scales(tokens):
            self._starts_fresh, self._tokens_so_far = False, None
            self.fit_to_first_batch(tokens)
        else:
            self._tokens_so_far = batch[:0]

    def _tells_scales(self, tokens: Tensor) -> bool:
        # In the rows of a transcoder targets follow inputs, and set the decoder.
        inputs, targets = tokens[:, : self.cfg.d_in], tokens[:, self.cfg.d_in :]
        return has_spread(inputs) and (targets.shape[1] == 0 or has_spread(targets))

    def _changed_parameters(self) -> list[str]:
        # On the meta device there was nothing to remember.
        if self._initial is None:
            return ["The parameters were"]
        return self._initial.changed(self)

    def _remember_start(self) -> None:
        self._initial = None if self.W_enc.is_meta else InitialParameters(self)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        probe = self.W_enc.detach()[:0]
        # Rounding to another dtype is no change by hand; a move to another device keeps all bits.
        untouched = fn(probe).dtype != probe.dtype and not self._changed_parameters()
        result = self._apply_to_parameters(fn, *args, **kwargs)
        if untouched:
            self._remember_start()
        return result

    def _apply_to_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """What Module.to() does to the parameters; a class may have it do otherwise."""
        return super()._apply(*args, **kwargs)

    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    @torch.no_grad()
    def _after_step(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        step = step_input.n_training_steps
        self._loss_watch.check(output.loss.detach(), step)
        if self._collapse_watch.is_due(step):
            rates = fired_rates(output.feature_acts)
            self._collapse_watch.check(rates, step_input.dead_neuron_mask, step)
