"""Training classes that read their start off the first batch and notice spoilt activations."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding.finite import FiniteWatch
from sae_binary_ext.saving import replacing


class FirstBatchTrainingSAE(TrainingSAE[Any]):
    """A coder in training whose first batch sets its parameters, unless weights were loaded."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        self._starts_fresh = True
        self._watch = FiniteWatch()
        super().__init__(cfg, use_error_term)

    @abstractmethod
    def fit_to_first_batch(self, batch: Tensor) -> None:
        """Set the initial parameters in place.

        Args:
            batch: [tokens, ...], what the trainer hands to a step.
        """

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self._before_step(step_input)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return super().training_forward_pass(step_input)

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
    def _before_step(self, step_input: TrainStepInput) -> None:
        self._watch.check(step_input.sae_in, step_input.n_training_steps)
        if self._starts_fresh:
            self._starts_fresh = False
            with torch.no_grad():
                self.fit_to_first_batch(step_input.sae_in)
