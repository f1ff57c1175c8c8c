"""The private names of SAELens that this package uses, under public names.

SAELens may change its private names without notice, so all modules import them from here.
"""

from pathlib import Path
from typing import Any

from sae_lens import TrainingSAE
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from typing_extensions import override

from sae_binary_ext.registration import Host

_RUNNER = "sae_lens.multi_sae_training_runner:MultiSAETrainingRunner"
HOST = Host(
    module="sae_lens",
    package="sae-lens",
    oldest="6.54",
    below="7",
    newest="6.54.12",
    private=(
        "sae_lens.training.multi_sae_trainer:MultiSAETrainer._estimate_scaling_factors",
        f"{_RUNNER}._set_sae_metadata",
        f"{_RUNNER}._save_runner_checkpoint_files",
        f"{_RUNNER}._run_with_interruption_handling",
        f"{_RUNNER}._save_final_outputs",
    ),
)


class MultiTrainer(MultiSAETrainer):
    """SAELens' trainer of several coders, with a public estimate_scales."""

    def estimate_scales(self) -> None:
        """Estimate the scale or the whitening of activations, before the first step."""
        super()._estimate_scaling_factors()

    @override
    def _estimate_scaling_factors(self) -> None:
        self.estimate_scales()


class MultiRunner(MultiSAETrainingRunner):
    """SAELens' runner of several coders, with public names for the steps of its run()."""

    def set_metadata(self) -> None:
        """Write into each coder's config the model, hooks and text of its training."""
        self._set_sae_metadata()

    def save_runner_files(self, checkpoint_path: Path | None) -> None:
        """Write the run's config and the state of its activations to a checkpoint."""
        self._save_runner_checkpoint_files(checkpoint_path)

    def train(self, trainer: MultiSAETrainer) -> dict[str, TrainingSAE[Any]]:
        """Train, with a checkpoint if interrupted, and save each coder to output_path, if set."""
        coders = self._run_with_interruption_handling(trainer)
        if self.cfg.output_path is not None:
            self._save_final_outputs(coders, trainer)
        return coders
