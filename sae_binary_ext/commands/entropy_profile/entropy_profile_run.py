"""`sae-binary entropy-profile`: the entropy of hidden states layer by layer, or by position.

A coder is trained for each layer, or for each position of each layer. The entropy of its codes is
taken as the entropy of the hidden states there (Cho et al., arXiv 2509.20997).
"""

from typing import Any

import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.commands.entropy_profile.config import BATCH, EntropyProfileConfig
from sae_binary_ext.commands.entropy_profile.entropy_profile_page import (
    ProfilePoint,
    entropy_profile_page,
)
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.hidden_states import (
    States,
    states_of_layers,
    states_of_positions,
    states_of_prompts,
)
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_model
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE, NORM_BATCHES = 2e-3, 20
# Every fifth state of a point is measured; the others are trained on.
MEASURED_EVERY = 5


def run_entropy_profile(config: EntropyProfileConfig) -> Analysis:
    """Train a coder for each point and measure it; files go to config.output.

    Raises:
        ValueError: the model has no such layers, or the text is too short.
    """
    return analyse_model(config, _measure, entropy_profile_page)


def _measure(opened: OpenedModel, config: EntropyProfileConfig) -> list[ProfilePoint]:
    states = _states(opened, config)
    return [
        measure_point(*key, found, config)
        for key, found in tqdm(states.items(), "Coders", unit="coders")
    ]


def _states(opened: OpenedModel, config: EntropyProfileConfig) -> States:
    hooks = {
        layer: resolve_hook(opened.model, "layers", f"blocks.{layer}.hook_resid_pre")
        for layer in config.layers
    }
    if config.along == "layers":
        return states_of_layers(opened, config, hooks, config.states)
    if config.prompts == "text":
        return states_of_positions(opened, config, hooks, config.states)
    return states_of_prompts(opened, config, hooks, config.states, config.seed)


def measure_point(
    layer: int, at: int | str, states: Tensor, config: EntropyProfileConfig
) -> ProfilePoint:
    """Train a coder on four fifths of a point's states, and measure it on the rest.

    Args:
        layer, at: name the point.
        states: [states, width].
        config: width, price of a bit and amount of training.

    Raises:
        ValueError: all states measured are the same.
    """
    apart = torch.arange(len(states)) % MEASURED_EVERY == 0
    measured = states[apart].float()
    if (measured == measured[0]).all():
        raise ValueError(
            f"layer {layer}, at {at}: all hidden states are the same, and have no entropy. Leave "
            "the point out, or give another text."
        )
    coder = _train(states[~apart], config)
    gathered = GatheredCodes(config.latents)
    with torch.no_grad():
        # States were drawn one by one, so each counts as a document of its own.
        gathered.add(coder.encode(measured) != 0, torch.arange(len(measured)))
    return ProfilePoint(layer, at, len(measured), measure(coder, measured), gathered.entropy())


def _train(states: Tensor, config: EntropyProfileConfig) -> Any:
    torch.manual_seed(config.seed)
    settings = BinaryEntropyTrainingSAEConfig(
        d_in=states.shape[1],
        d_sae=config.latents,
        entropy_coefficient=config.entropy_coefficient,
        normalize_activations="expected_average_only_in",
    )
    batch = min(BATCH, len(states))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=config.training_states,
            train_batch_size_samples=batch,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
            lr_decay_steps=config.training_states // batch // 3,
            n_batches_for_norm_estimate=NORM_BATCHES,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        TrainingSAE.from_dict(settings.to_dict()),
        shuffled_batches(states, batch, config.seed),
    )
    return trainer.fit()
