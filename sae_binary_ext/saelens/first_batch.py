"""Training classes that read their start off the first batch and notice what goes wrong."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding.collapse import CollapseWatch
from sae_binary_ext.coding.entropy import firing_rates
from sae_binary_ext.coding.finite import FiniteRows, FiniteWatch
from sae_binary_ext.saving import replacing


@dataclass
class NonFiniteFields:
    """What is done about activations that are NaN or infinite.

    Args:
        skip_non_finite: leave such tokens out of training and count them (the metric
            skipped_tokens), instead of stopping with an error that names the step. On a GPU each
            step then waits for the one before.
    """

    skip_non_finite: bool = False


class FirstBatchTrainingSAE(TrainingSAE[Any]):
    """A coder in training whose first batch sets its parameters, unless weights were loaded."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        self._starts_fresh = True
        self._watch = FiniteWatch()
        self._finite_rows = FiniteRows()
        self._collapse_watch = CollapseWatch()
        super().__init__(cfg, use_error_term)

    @abstractmethod
    def fit_to_first_batch(self, batch: Tensor) -> None:
        """Set the initial parameters in place.

        Args:
            batch: [tokens, ...], what the trainer hands to a step.
        """

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        step_input = self._before_step(step_input)  # pyright: ignore
        output = super().training_forward_pass(step_input)
        if self.cfg.skip_non_finite:
            output.metrics["skipped_tokens"] = self._finite_rows.skipped
        self._after_step(step_input, output)  # pyright: ignore
        return output

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._starts_fresh = False
        return super().load_state_dict(*args, **kwargs)

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        self._watch.check_now()
        super().process_state_dict_for_saving(state_dict)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the coder for inference, weights and config at once; returns their paths."""
        with replacing(Path(path)) as new:
            weights, config = super().save_inference_model(new)
        return Path(path) / weights.name, Path(path) / config.name

    # Reads data on the host, which a compiled step (compile_sae) must not trace.
    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    def _before_step(self, step_input: TrainStepInput) -> TrainStepInput:
        step = step_input.n_training_steps
        if self.cfg.skip_non_finite:
            rows = self._finite_rows.of(step_input.sae_in, step=step)
            if rows is not None:
                step_input = replace(step_input, sae_in=step_input.sae_in[rows])
        else:
            self._watch.check(step_input.sae_in, step)
        if self._starts_fresh:
            self._starts_fresh = False
            with torch.no_grad():
                self.fit_to_first_batch(step_input.sae_in)
        return step_input

    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    @torch.no_grad()
    def _after_step(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        step = step_input.n_training_steps
        if self._collapse_watch.is_due(step):
            fired = output.feature_acts.to_dense() > 0
            rates = firing_rates(fired.to(torch.float32))
            self._collapse_watch.check(rates, step_input.dead_neuron_mask, step)
