"""`sae-binary entropy-check`: does the entropy of trained codes come to a known truth?

Hidden states are sums of random directions with 0/1 coefficients, whose entropy is known, as in
Cho et al. (arXiv 2509.20997). A coder is trained on them, and the entropy of its codes compared.
"""

from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from sae_lens.synthetic import (
    SyntheticDataEvalResult,
    eval_sae_on_synthetic_data,
    train_toy_sae,
)
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import FiringRates
from sae_binary_ext.coding.kernels import seeded
from sae_binary_ext.commands.entropy_check.config import BATCH, EntropyCheckConfig
from sae_binary_ext.commands.entropy_check.known_states import (
    States,
    correlated,
    fair,
    noisy,
    unequal,
)
from sae_binary_ext.commands.entropy_check.pruning import needed_latents
from sae_binary_ext.measure.code_entropy import CodeEntropy, GatheredCodes
from sae_binary_ext.measure.latent_choice import with_latents
from sae_binary_ext.measure.least_squares import DecoderFit
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.refit import refit_decoder
from sae_binary_ext.report.analysis import Analysis, Column, Table, Value, write_analysis
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAE,
)

LATENTS_A_DIRECTION = 4
# Of r directions each has about 1/r of the variance: a bit costs a part of what it explains.
COST_OF_A_BIT = 0.03
ROUNDS = 4
LEARNING_RATE = 1e-2
STATES_AT_ONCE, MANY_DIRECTIONS = 4096, 32
REMARKS = (
    "Hidden states of known entropy: each is a sum of r random directions with 0/1 "
    "coefficients, and a coder with the entropy loss is trained on them. Fair: coefficients are "
    "1 half of the time, the truth is r bits. Unequal: from 5% to 50% of the time. Pairs: every "
    "coefficient is correlated (0.8 before the threshold) with one other; the independent "
    "estimate is then too high by what they share, and the bounds tree and blocks should find "
    "it. Noise: a tenth of the signal's deviation on every dimension; with it a state's own "
    "entropy is no longer finite, and the truth shown is that of the coefficients.",
    "Training leaves latents that repeat others, for the entropy of a latent that fires half of "
    "the time has no slope. So training stops four times to remove latents one by one while that "
    "lowers FVU and price of the bits together, with the decoder of least squared error for those "
    "left; trained is the independent estimate before the first removal.",
    "Recovery is SAELens' mean correlation coefficient of decoder rows and directions, 1 where "
    "every direction has a row. That an estimate is right here shows that training and counting "
    "work, and not that a real model's states are such sums: on them the estimate depends on "
    "the width and on what a bit costs, and says what this coder keeps.",
)
COLUMNS = (
    Column("states"),
    Column("d", "Dimensions of a hidden state.", "d"),
    Column("r", "Directions.", "d"),
    Column("truth", "Entropy of the coefficients, in bits.", ".2f"),
    Column("independent", "Sum of the entropies of the firing rates, in bits.", ".2f"),
    Column("trained", "The same before the first latents were removed.", ".2f"),
    Column("off", "The independent estimate over the truth, less 1.", "+.1%"),
    Column("tree", "Upper bound, each latent given one other.", ".2f"),
    Column("blocks", "Upper bound, groups of up to eight latents.", ".2f"),
    Column("FVU", "Squared error over total variance.", ".4f"),
    Column("recovery", "SAELens' mean correlation coefficient.", ".3f"),
    Column("L0", "Mean active latents.", ".1f"),
)


@dataclass(frozen=True)
class Checked:
    """A source and what its coder makes of it.

    Attributes:
        states: the source.
        trained: sum of the entropies of the firing rates, in bits, before the first latents
            were removed.
        latents: left.
        bounds: entropy of the codes.
        independent: sum of the entropies of the firing rates, in bits, over all states measured.
        found: SAELens' figures: recovery, explained variance and more.
    """

    states: States
    trained: float
    latents: int
    bounds: CodeEntropy
    independent: float
    found: SyntheticDataEvalResult


@dataclass(frozen=True)
class _Start:
    """One of the coders trained of a source, and its loss."""

    coder: BinaryTrainingSAE
    trained: float
    loss: float


def run_entropy_check(config: EntropyCheckConfig) -> Analysis:
    """Train and measure; files go to config.output.

    Raises:
        ValueError: training diverged.
    """
    sources = [(fair, r, d) for d in config.dimensions for r in config.directions]
    sources += [
        (source, directions, config.dimensions[0])
        for source in (unequal, correlated, noisy)
        for directions in config.variant_directions
    ]
    checked: list[Checked] = []
    for source, directions, dimensions in tqdm(sources, "Sources", unit="sources"):
        with seeded(config.seed, torch.device("cpu")):
            checked.append(check(source(directions, dimensions), config))
    analysis = Analysis(
        "entropy-check",
        "Entropy of known states",
        REMARKS,
        [Table("Bits a state", COLUMNS, [_row(each) for each in checked])],
        {"Estimate by truth": _by_truth(checked)},
        {"sources": [_described(each) for each in checked]},
    )
    run = {key: str(value) for key, value in asdict(config).items()}
    write_analysis(analysis, run, config.output)
    return analysis


def check(states: States, config: EntropyCheckConfig) -> Checked:
    """Train coders on states, remove what latents do not pay, and measure the entropy of the best
    one's codes."""
    starts = [_start(states, config) for _ in range(config.starts)]
    # Of other states than are measured below: which one is best is not chosen on those.
    best = min(starts, key=lambda start: start.loss)
    coder = best.coder
    gathered, rates = GatheredCodes(coder.cfg.d_sae), FiringRates(coder.cfg.d_sae)
    with torch.no_grad():
        for part in torch.arange(config.measured_states).split(STATES_AT_ONCE):
            codes = coder.encode(states.dictionary(states.generator.sample(len(part))))
            rates.update(codes)
            # Each state is a document of its own: they are drawn independently of each other.
            gathered.add(codes != 0, part)
    recovery = eval_sae_on_synthetic_data(
        coder, states.dictionary, states.generator, config.measured_states, STATES_AT_ONCE
    )
    return Checked(
        states,
        best.trained,
        coder.cfg.d_sae,
        gathered.entropy(),
        rates.entropy_bits,
        recovery,
    )


def _start(states: States, config: EntropyCheckConfig) -> _Start:
    """A coder trained in rounds, after each without the latents that do not pay."""
    price = COST_OF_A_BIT / states.dictionary.num_features
    coder, trained = _new_coder(states), 0.0
    for number in range(ROUNDS):
        _train(coder, states, config)
        sample = _sample(states, config.measured_states)
        if number == 0:
            trained = measure(coder, sample).entropy_bits
        coder = _pruned(coder, sample, price)
    metrics = measure(coder, _sample(states, config.measured_states))
    return _Start(coder, trained, metrics.fvu + price * metrics.entropy_bits)


def _pruned(coder: BinaryTrainingSAE, sample: Tensor, price: float) -> BinaryTrainingSAE:
    """A coder of the latents that pay on a sample of states, its decoder solved for anew."""
    fit = DecoderFit(coder.cfg.d_sae, coder.cfg.d_in)
    # In parts, for each is copied to float64 on the way.
    parts = sample.split(STATES_AT_ONCE)
    for part in parts:
        fit.add(coder.encode(part) != 0, part)
    mean = sample.mean(0)
    variance = sum((part - mean).square().sum().item() for part in parts)
    narrow = with_latents(coder, needed_latents(fit, variance, price))
    refit_decoder(narrow, [(part, part) for part in parts])
    return narrow


@torch.no_grad()
def _sample(states: States, number: int) -> Tensor:
    """Hidden states [number, dimensions]."""
    return states.dictionary(states.generator.sample(number))


def _new_coder(states: States) -> BinaryTrainingSAE:
    directions = states.dictionary.num_features
    settings = BinaryEntropyTrainingSAEConfig(
        d_in=states.dictionary.hidden_dim,
        d_sae=LATENTS_A_DIRECTION * directions,
        entropy_coefficient=COST_OF_A_BIT / directions,
        entropy_start_step=0,
        entropy_warm_up_steps=0,
        normalize_activations="none",
    )
    return BinaryEntropyTrainingSAE(settings)


def _train(coder: BinaryTrainingSAE, states: States, config: EntropyCheckConfig) -> None:
    number = config.training_states * (1 + (states.dictionary.num_features > MANY_DIRECTIONS))
    train_toy_sae(
        coder,
        states.dictionary,
        states.generator,
        training_samples=number,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        lr_decay_steps=number // BATCH // 3,
    )


def _row(checked: Checked) -> list[Value]:
    states, bounds, found = checked.states, checked.bounds, checked.found
    return [
        states.name,
        states.dictionary.hidden_dim,
        states.dictionary.num_features,
        states.truth,
        checked.independent,
        checked.trained,
        checked.independent / states.truth - 1,
        bounds.tree.value,
        bounds.blocks.value,
        1 - found.explained_variance,
        found.mcc,
        found.sae_l0,
    ]


def _described(checked: Checked) -> dict[str, Any]:
    states, bounds = checked.states, checked.bounds
    return {
        "states": states.name,
        "dimensions": states.dictionary.hidden_dim,
        "directions": states.dictionary.num_features,
        "truth_bits": states.truth,
        "independent_bits": checked.independent,
        "trained_bits": checked.trained,
        "latents": checked.latents,
        "tree_bits": bounds.tree,
        "blocks_bits": bounds.blocks,
        "seen_bits": bounds.seen,
        "most_seen_bits": bounds.most_seen,
        "recovery": checked.found.to_dict(),
    }


def _by_truth(checked: list[Checked]) -> go.Figure:
    figure = go.Figure()
    truths = [each.states.truth for each in checked]
    ends = [min(truths), max(truths)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="truth", line_dash="dot")
    groups: dict[str, list[Checked]] = {}
    for each in checked:
        name = f"{each.states.name}, d = {each.states.dictionary.hidden_dim}"
        groups.setdefault(name, []).append(each)
    for name, group in groups.items():
        figure.add_scatter(
            x=[each.states.truth for each in group],
            y=[each.independent for each in group],
            mode="markers",
            marker_size=10,
            name=name,
        )
    lowest = [min(each.bounds.tree.value, each.bounds.blocks.value) for each in checked]
    figure.add_scatter(
        x=truths,
        y=lowest,
        mode="markers",
        marker_symbol="line-ew-open",
        name="lower of tree, blocks",
    )
    figure.update_xaxes(title="truth, bits", type="log", dtick="D2")
    figure.update_yaxes(title="entropy of the codes, bits", type="log", dtick="D2")
    return figure
