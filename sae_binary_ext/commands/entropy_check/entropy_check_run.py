"""`sae-binary entropy-check`: does the entropy of trained codes match a known truth?

Hidden states are sums of random directions with 0/1 coefficients, so that their entropy is known,
as in Cho et al. (arXiv 2509.20997). A coder is trained on them, and the entropy of its codes is
compared with the truth.
"""

from dataclasses import asdict, dataclass

import torch
from sae_lens.synthetic import eval_sae_on_synthetic_data, train_toy_sae
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import FiringRates
from sae_binary_ext.coding.kernels import seeded
from sae_binary_ext.commands.entropy_check.config import BATCH, EntropyCheckConfig
from sae_binary_ext.commands.entropy_check.entropy_check_page import Checked, entropy_check_page
from sae_binary_ext.commands.entropy_check.known_states import (
    States,
    correlated,
    fair,
    noisy,
    unequal,
)
from sae_binary_ext.commands.entropy_check.pruning import needed_latents
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.refit import DecoderFit, refit_decoder, with_latents
from sae_binary_ext.report import Analysis, write_analysis
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAE,
)

LATENTS_A_DIRECTION = 4
# Each of r directions has about 1/r of the variance. A bit costs this share of it.
COST_OF_A_BIT = 0.03
ROUNDS = 4
LEARNING_RATE = 1e-2
STATES_AT_ONCE, MANY_DIRECTIONS = 4096, 32


@dataclass(frozen=True)
class _Start:
    """One of the coders trained on a source, and its loss."""

    coder: BinaryTrainingSAE
    trained: float
    loss: float


def run_entropy_check(config: EntropyCheckConfig) -> Analysis:
    """Train coders and measure them; files go to config.output.

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
    analysis = entropy_check_page(checked)
    run = {key: str(value) for key, value in asdict(config).items()}
    write_analysis(analysis, run, config.output)
    return analysis


def check(states: States, config: EntropyCheckConfig) -> Checked:
    """Train coders on states, and measure the entropy of the best one's codes."""
    starts = [_start(states, config) for _ in range(config.starts)]
    # The best coder is chosen on other states than are measured below.
    best = min(starts, key=lambda start: start.loss)
    coder = best.coder
    gathered, rates = GatheredCodes(coder.cfg.d_sae), FiringRates(coder.cfg.d_sae)
    with torch.no_grad():
        for part in torch.arange(config.measured_states).split(STATES_AT_ONCE):
            codes = coder.encode(states.dictionary(states.generator.sample(len(part))))
            rates.update(codes)
            # States are drawn independently, so each counts as a document of its own.
            gathered.add(codes != 0, part)
    recovery = eval_sae_on_synthetic_data(
        coder, states.dictionary, states.generator, config.measured_states, STATES_AT_ONCE
    )
    return Checked(
        states, best.trained, coder.cfg.d_sae, gathered.entropy(), rates.entropy_bits, recovery
    )


def _start(states: States, config: EntropyCheckConfig) -> _Start:
    """Train a coder in rounds; after each one, remove the latents that cost more than they pay."""
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
    """The coder without latents that do not pay on a sample of states, its decoder refitted."""
    fit = DecoderFit(coder.cfg.d_sae, coder.cfg.d_in)
    # In parts, because each part is copied to float64.
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
