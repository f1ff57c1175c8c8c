"""`sae-binary entropy-profile`: the entropy of hidden states layer by layer, or by position.

A coder is trained for each layer, or for each position of each layer, and the entropy of its codes
taken for that of the hidden states there (Cho et al., arXiv 2509.20997).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.demo.coders import shuffled_batches
from sae_binary_ext.commands.entropy_profile.config import BATCH, EntropyProfileConfig
from sae_binary_ext.measure.code_entropy import CodeEntropy, GatheredCodes
from sae_binary_ext.measure.hidden_states import (
    states_of_layers,
    states_of_positions,
    states_of_prompts,
)
from sae_binary_ext.measure.metrics import CoderMetrics, measure
from sae_binary_ext.measure.reading import open_model_alone, settings_of
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.saelens import BinaryEntropyTrainingSAEConfig
from sae_binary_ext.saelens.splice import resolve_hook

LEARNING_RATE, NORM_BATCHES = 2e-3, 20
# Of the states of a point every fifth is measured, and the others trained on.
MEASURED_EVERY = 5
SATURATED = 0.95
REMARKS = (
    "A coder with the entropy loss was trained for each point, all with the same width, the same "
    "number of states seen and the same cost of a bit, on four fifths of the point's hidden "
    "states; entropy and FVU are of the other fifth. Independent: sum of the entropies of the "
    "firing rates. Tree, blocks: upper bounds that admit dependence, each of half of that fifth "
    "by the other half.",
    "Hidden states are not discrete: the entropy is of what a coder of this width keeps of them at "
    "this price, and rises with both. Points can be compared with each other where their FVU is "
    "alike; where a point's FVU is higher, its entropy is too low by comparison. Few states make "
    "both worse.",
)
COLUMNS = (
    Column("layer", "Whose incoming residual stream is coded.", "d"),
    Column("at", "Position of the token, or examples before the answer; all: every position."),
    Column("states", "Hidden states measured.", "d"),
    Column("FVU", "Squared error over total variance, of states not trained on.", ".3f"),
    Column("L0", "Mean active latents.", ".1f"),
    Column("independent", "Bits a state: sum of the entropies of the firing rates.", ".1f"),
    Column("tree", "Upper bound, each latent given one other.", ".1f"),
    Column("blocks", "Upper bound, groups of up to eight latents.", ".1f"),
)


@dataclass(frozen=True)
class ProfilePoint:
    """One point of a profile.

    Attributes:
        layer: whose incoming residual stream it is of.
        at: position, number of examples, or "all".
        states: measured.
        metrics: of the coder's codes and outputs.
        bounds: on the entropy of its codes.
    """

    layer: int
    at: int | str
    states: int
    metrics: CoderMetrics
    bounds: CodeEntropy


def run_entropy_profile(config: EntropyProfileConfig) -> Analysis:
    """Train a coder a point and measure; files go to config.output.

    Raises:
        ValueError: the model has no such layers, or the text is too short.
    """
    opened = open_model_alone(config, config.output)
    hooks = {
        layer: resolve_hook(opened.model, "layers", f"blocks.{layer}.hook_resid_pre")
        for layer in config.layers
    }
    if config.along == "layers":
        states = states_of_layers(opened, config, hooks, config.states)
    elif config.prompts == "text":
        states = states_of_positions(opened, config, hooks, config.states)
    else:
        states = states_of_prompts(opened, config, hooks, config.states, config.seed)
    points = [
        measure_point(*key, found, config)
        for key, found in tqdm(states.items(), "Coders", unit="coders")
    ]
    analysis = Analysis(
        "entropy-profile",
        "Entropy of hidden states",
        REMARKS,
        [Table("Bits a hidden state", COLUMNS, [_row(point) for point in points])],
        {"Entropy": _curve(points, config), "FVU": _fvu_curve(points, config)},
        {"points": [_described(point) for point in points], "saturation": saturation(points)},
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def measure_point(
    layer: int, at: int | str, states: Tensor, config: EntropyProfileConfig
) -> ProfilePoint:
    """Train a coder on four fifths of a point's states, and measure it on the rest.

    Args:
        layer, at: which point.
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
        # Each state is a document of its own: they were drawn one by one.
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


def saturation(points: list[ProfilePoint]) -> dict[int, int | str]:
    """Of each layer of several points, the first with 95% of the layer's highest entropy."""
    found: dict[int, int | str] = {}
    for layer in dict.fromkeys(point.layer for point in points):
        own = [point for point in points if point.layer == layer]
        highest = max(point.metrics.entropy_bits for point in own)
        reached = (p.at for p in own if p.metrics.entropy_bits >= SATURATED * highest)
        if len(own) > 1:
            found[layer] = next(reached)
    return found


def _row(point: ProfilePoint) -> list[Value]:
    bounds, metrics = point.bounds, point.metrics
    return [
        point.layer,
        str(point.at),
        point.states,
        metrics.fvu,
        metrics.l0,
        metrics.entropy_bits,
        bounds.tree.value,
        bounds.blocks.value,
    ]


def _described(point: ProfilePoint) -> dict[str, Any]:
    return {
        "layer": point.layer,
        "at": point.at,
        "states": point.states,
        "fvu": point.metrics.fvu,
        "l0": point.metrics.l0,
        "dead": point.metrics.dead,
        "independent_bits": point.metrics.entropy_bits,
        "tree_bits": point.bounds.tree,
        "blocks_bits": point.bounds.blocks,
        "most_seen_bits": point.bounds.most_seen,
    }


def _curve(points: list[ProfilePoint], config: EntropyProfileConfig) -> go.Figure:
    return _figure(points, config, "bits a state", lambda point: point.metrics.entropy_bits)


def _fvu_curve(points: list[ProfilePoint], config: EntropyProfileConfig) -> go.Figure:
    return _figure(points, config, "FVU", lambda point: point.metrics.fvu)


def _figure(
    points: list[ProfilePoint],
    config: EntropyProfileConfig,
    title: str,
    value: Callable[[ProfilePoint], float],
) -> go.Figure:
    figure = go.Figure()
    if config.along == "layers":
        figure.add_scatter(
            x=[point.layer for point in points],
            y=[value(point) for point in points],
            mode="lines+markers",
        )
        figure.update_xaxes(title="layer")
    else:
        for layer in config.layers:
            own = [point for point in points if point.layer == layer]
            figure.add_scatter(
                # As text: 0 examples has no place on a logarithmic axis.
                x=[str(point.at) for point in own],
                y=[value(point) for point in own],
                mode="lines+markers",
                name=f"layer {layer}",
            )
        of = "position" if config.prompts == "text" else "examples before the answer"
        figure.update_xaxes(title=of, type="category")
    figure.update_yaxes(title=title, rangemode="tozero")
    return figure
