"""Base of all training classes: fits initial parameters to the first batch, checks each step."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checks import check_training_dtype
from sae_binary_ext.coding.initialization import has_spread
from sae_binary_ext.saelens.resuming import ActivationScale, folded_scale
from sae_binary_ext.saving import replacing
from sae_binary_ext.training import finite
from sae_binary_ext.training.collapse import CollapseWatch
from sae_binary_ext.training.fields import FiniteFields
from sae_binary_ext.training.untouched import InitialParameters

logger = logging.getLogger(__name__)

# Minimum number of tokens to fit initial parameters to. Smaller batches are joined.
FEWEST_TOKENS = 32


@dataclass
class TrainingFields(FiniteFields):
    """The field that all training configs of this package share: skip_non_finite.

    If skip_non_finite is True, the estimates before training skip non-finite tokens too, and the
    metric skipped_tokens counts the tokens that training skipped.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """As SAELens', but also takes the cfg.json of a coder that was saved for inference."""
        # That file names the inference architecture. Its metadata has the training fields.
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
    """A coder in training whose first batch sets its parameters, unless a user has set them.

    If a user loads weights or changes any parameter, training starts from all parameters as they
    are. To set some parameters and fit the others to data, call fit_to_first_batch first.

    Attributes:
        scale: the scale that loaded weights were trained in, if their run had not ended.
        folded: the scale that the end of training folded into the weights, if there was one.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        self._starts_fresh = True
        # Tokens of earlier batches, kept while they are too few to fit initial parameters to.
        self._tokens_so_far: Tensor | None = None
        self._initial: InitialParameters | None = None
        self.scale: ActivationScale | None = None
        self.folded: ActivationScale | None = None
        self._watch = finite.FiniteWatch()
        self._loss_watch = finite.FiniteWatch(finite.non_finite_loss)
        self._finite_rows = finite.FiniteRows()
        self._collapse_watch = CollapseWatch()
        super().__init__(cfg, use_error_term)
        self._remember_start()

    @abstractmethod
    def fit_to_first_batch(self, batch: Tensor) -> None:
        """Set the initial parameters from a training batch, [tokens, width of its rows]."""

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        step_input = self._before_step(step_input)  # pyright: ignore
        output = self.step_losses(step_input)
        if self.cfg.skip_non_finite:
            output.metrics["skipped_tokens"] = self._finite_rows.skipped
        self._after_step(step_input, output)  # pyright: ignore
        return output

    def step_losses(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The losses of a batch of finite tokens, as SAELens' own step returns them."""
        return super().training_forward_pass(step_input)

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._starts_fresh = False
        return super().load_state_dict(*args, **kwargs)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """As SAELens', but undoes a scale's fold; ValueError if the checkpoint lacks the scale."""
        folded = folded_scale(Path(checkpoint_path), self.cfg)
        super().load_weights_from_checkpoint(checkpoint_path)
        if folded is not None:
            folded.take_from(self)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: Any) -> None:
        """As SAELens', but keeps the factor for checkpoints, so that training can resume."""
        mode = self.cfg.normalize_activations
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.folded = ActivationScale.of(mode, ActivationScaler(scaling_factor))

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        """As SAELens', but keeps the whitening for checkpoints, so that training can resume."""
        mode = self.cfg.normalize_activations
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        whitening = ActivationWhitening(mean, whitening_matrix, unwhitening_matrix)
        self.folded = ActivationScale.of(mode, ActivationScaler(whitening=whitening))

    def give_scale_to(self, scaler: ActivationScaler) -> None:
        """Give a trainer's scaler the scale that the loaded weights were trained in, if known."""
        if self.scale is not None and self.scale.mode == self.cfg.normalize_activations:
            self.scale.give_to(scaler)

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        self.check_saveable()
        super().process_state_dict_for_saving(state_dict)

    def check_saveable(self) -> None:
        """Raise ValueError if a step's values or a parameter are not finite. A GPU waits."""
        self._watch.check_now()
        self._loss_watch.check_now()
        finite.check_parameters(self.named_parameters())

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens', but all or nothing; ValueError if a parameter is not finite."""
        self.check_saveable()
        with replacing(Path(path)) as new:
            weights, config = super().save_inference_model(new)
        return Path(path) / weights.name, Path(path) / config.name

    # This method reads data on the host, which a compiled step (compile_sae) must not trace.
    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    def _before_step(self, step_input: TrainStepInput) -> TrainStepInput:
        step, values = step_input.n_training_steps, step_input.sae_in
        if self.cfg.normalize_activations == "constant_norm_rescale":
            # A token of norm 0 cannot be rescaled: the division makes it NaN.
            values = values / values[:, : self.cfg.d_in].norm(dim=-1, keepdim=True)
        if self.cfg.skip_non_finite:
            rows = self._finite_rows.of(values, step=step)
            if rows is not None:
                step_input = replace(step_input, sae_in=step_input.sae_in[rows])
        else:
            self._watch.check(values, step)
        if self._starts_fresh:
            self._start_from(step_input.sae_in)
        return step_input

    @torch.no_grad()
    def _start_from(self, batch: Tensor) -> None:
        """Fit initial parameters to the batches so far, if tokens differ and a user set none."""
        if self._tokens_so_far is None:
            check_training_dtype(str(self.dtype))
            changed = self._changed_parameters()
            if changed:
                logger.warning(
                    f"{', '.join(changed)} set by hand: training starts from all parameters as they"
                    " are. To start the others from data, call fit_to_first_batch(batch) first."
                )
                self._starts_fresh = False
                return
            self._tokens_so_far = batch[:0]
        tokens = torch.cat([self._tokens_so_far, batch])
        # In a transcoder's row the targets follow the inputs. The targets set the decoder.
        inputs, targets = tokens[:, : self.cfg.d_in], tokens[:, self.cfg.d_in :]
        if len(tokens) < FEWEST_TOKENS:
            self._tokens_so_far = tokens
        elif has_spread(inputs) and (targets.shape[1] == 0 or has_spread(targets)):
            self._starts_fresh, self._tokens_so_far = False, None
            self.fit_to_first_batch(tokens)
        else:
            self._tokens_so_far = batch[:0]

    def _changed_parameters(self) -> list[str]:
        # A coder on the meta device had no values to remember.
        return ["The parameters were"] if self._initial is None else self._initial.changed(self)

    def _remember_start(self) -> None:
        self._initial = None if self.W_enc.is_meta else InitialParameters(self)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        probe = self.W_enc.detach()[:0]
        # A cast rounds parameters, but is no change by hand. A move to another device keeps bits.
        untouched = fn(probe).dtype != probe.dtype and not self._changed_parameters()
        result = self._apply_to_parameters(fn, *args, **kwargs)
        if untouched:
            self._remember_start()
        return result

    def _apply_to_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Module.to() for the parameters. A subclass may treat some of them differently."""
        return super()._apply(*args, **kwargs)

    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    @torch.no_grad()
    def _after_step(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        step = step_input.n_training_steps
        self._loss_watch.check(output.loss.detach(), step)
        if self._collapse_watch.is_due(step):
            rates = fired_rates(output.feature_acts)
            self._collapse_watch.check(rates, step_input.dead_neuron_mask, step)
