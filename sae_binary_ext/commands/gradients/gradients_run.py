"""`sae-binary gradients`: gradients of surrogates beside the true loss, over training."""

from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.commands.gradients.config import BATCH, GradientsConfig
from sae_binary_ext.commands.gradients.gradient_probe import probe_gradients
from sae_binary_ext.commands.gradients.gradients_page import Probe, gradients_page
from sae_binary_ext.measure.hidden_states import states_of_layers
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_model
from sae_binary_ext.saelens import BinaryTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE, NORM_BATCHES = 3e-3, 20


def run_gradients(config: GradientsConfig) -> Analysis:
    """Train coders and measure their gradients; files go to config.output.

    Raises:
        ValueError: the model lacks the hook, or there is too little text.
    """
    return analyse_model(config, _measure, gradients_page)


def _measure(opened: OpenedModel, config: GradientsConfig) -> list[Probe]:
    hook = resolve_hook(opened.model, "hook", config.hook or "")
    (states,) = states_of_layers(opened, config, {0: hook}, config.tokens).values()
    held_out, states = states[: config.probe_tokens].float(), states[config.probe_tokens :]
    if len(states) < BATCH:
        raise ValueError(
            f"tokens={config.tokens}: the text has {len(states)} tokens beside those to measure "
            f"on, and a step of training takes {BATCH}. Give a longer text."
        )
    surrogates = tqdm(config.surrogates or list(SURROGATES), "Surrogates", unit="coders")
    return [
        probe
        for surrogate in surrogates
        for probe in train_and_probe(surrogate, states, held_out, config)
    ]


class _ProbingTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer, with a measurement after each step."""

    probe: Callable[[int, Any], None]

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        self.probe(self.n_training_steps + 1, self)
        return output


def train_and_probe(
    surrogate: str, states: Tensor, held_out: Tensor, config: GradientsConfig
) -> list[Probe]:
    """Train a coder and measure its gradients at some of the steps.

    Args:
        surrogate: a key of SURROGATES.
        states: [states, width], to train on.
        held_out: float32 [tokens, width], to measure on.
        config: width, selection and amount of training.
    """
    torch.manual_seed(config.seed)
    settings = BinaryTrainingSAEConfig(
        d_in=states.shape[1],
        d_sae=config.latents,
        k=config.k,
        selection=config.selection,
        surrogate=surrogate,
        surrogate_temperature=config.surrogate_temperature,
        normalize_activations="expected_average_only_in",
    )
    trainer = _ProbingTrainer(
        SAETrainerConfig(
            total_training_samples=config.training_states // BATCH * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            n_batches_for_norm_estimate=NORM_BATCHES,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        TrainingSAE.from_dict(settings.to_dict()),
        shuffled_batches(states, BATCH, config.seed),
    )
    steps, found = set(config.probe_steps()), list[Probe]()

    def probe(step: int, trainer: Any) -> None:
        if step in steps:
            x = trainer.activation_scaler(held_out)
            figures = probe_gradients(trainer.sae, x, config.probed_latents, config.seed)
            found.append(Probe(surrogate, step, figures))

    trainer.probe = probe
    trainer.fit()
    return found
