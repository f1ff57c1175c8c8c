"""`sae-binary entropy-profile`: entropy of hidden states by layer, position or number of examples.

A coder is trained for each point. The entropy of the coder's codes estimates the entropy of the
hidden states at the point (Cho et al., arXiv 2509.20997).
"""

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.demo.coders import trainer_on
from sae_binary_ext.commands.entropy_profile import entropy_profile_page as page
from sae_binary_ext.commands.entropy_profile.config import BATCH, EntropyProfileConfig
from sae_binary_ext.measure import hidden_states
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_model
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE = 2e-3
# Every fifth state of a point is used to measure; all other states are used to train.
MEASURED_EVERY = 5


def run_entropy_profile(config: EntropyProfileConfig) -> Analysis:
    """Train and measure a coder for each point; files go to config.output.

    ValueError if the model lacks a layer, or the text is too short.
    """
    return analyse_model(config, _measure, page.entropy_profile_page)


def _measure(opened: OpenedModel, config: EntropyProfileConfig) -> list[page.ProfilePoint]:
    hooks = {
        layer: resolve_hook(opened.model, "layers", f"blocks.{layer}.hook_resid_pre")
        for layer in config.layers
    }
    if config.along == "layers":
        states = hidden_states.states_of_layers(opened, config, hooks, config.states)
    elif config.prompts == "text":
        states = hidden_states.states_of_positions(opened, config, hooks, config.states)
    else:
        states = hidden_states.states_of_prompts(opened, config, hooks, config.states, config.seed)
    points = tqdm(states.items(), "Coders", unit="coders")
    return [train_and_measure(*key, found, config) for key, found in points]


def train_and_measure(
    layer: int, at: int | str, states: Tensor, config: EntropyProfileConfig
) -> page.ProfilePoint:
    """Train a coder on four fifths of a point's states [states, width]; measure it on the rest."""
    apart = torch.arange(len(states)) % MEASURED_EVERY == 0
    measured = states[apart].float()
    if (measured == measured[0]).all():
        raise ValueError(
            f"layer {layer}, at {at}: all hidden states are the same, and have no entropy. Leave "
            "the point out, or give another text."
        )
    learned = states[~apart]
    settings = BinaryEntropyTrainingSAEConfig(
        d_in=states.shape[1],
        d_sae=config.latents,
        entropy_coefficient=config.entropy_coefficient,
        normalize_activations="expected_average_only_in",
    )
    batch = min(BATCH, len(learned))
    coder = trainer_on(
        learned,
        settings,
        batch,
        config.seed,
        total_training_samples=config.training_states,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE / 10,
        lr_decay_steps=config.training_states // batch // 3,
    ).fit()
    gathered = GatheredCodes(config.latents)
    with torch.no_grad():
        # States were drawn one by one, so each state counts as its own document.
        gathered.add(coder.encode(measured) != 0, torch.arange(len(measured)))
    return page.ProfilePoint(layer, at, len(measured), measure(coder, measured), gathered.entropy())
