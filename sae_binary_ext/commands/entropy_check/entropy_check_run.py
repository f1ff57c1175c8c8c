"""`sae-binary entropy-check`: compares the entropy of trained codes with the true entropy."""

from dataclasses import asdict

import torch
from sae_lens.synthetic import eval_sae_on_synthetic_data, train_toy_sae
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import FiringRates, bernoulli_entropy
from sae_binary_ext.coding.kernels import seeded
from sae_binary_ext.commands.entropy_check import known_states
from sae_binary_ext.commands.entropy_check.config import BATCH, EntropyCheckConfig
from sae_binary_ext.commands.entropy_check.entropy_check_page import Checked, entropy_check_page
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.refit import AnyCoder, with_latents
from sae_binary_ext.report import Analysis, write_analysis
from sae_binary_ext.saelens import BinaryEntropyTrainingSAE, BinaryEntropyTrainingSAEConfig
from sae_binary_ext.saelens.refitting import refit_decoder
from sae_binary_ext.training.least_squares import DecoderFit

LATENTS_A_DIRECTION = 4
# Price of a bit, as a share of the variance of one direction (about 1/r for r directions).
COST_OF_A_BIT = 0.03
ROUNDS, LEARNING_RATE = 4, 1e-2
STATES_AT_ONCE, MANY_DIRECTIONS = 4096, 32
VARIANTS = (known_states.unequal, known_states.correlated, known_states.noisy)


def run_entropy_check(config: EntropyCheckConfig) -> Analysis:
    """Train coders and measure them; files go to config.output. ValueError if training diverges."""
    sources = [(known_states.fair, r, d) for d in config.dimensions for r in config.directions]
    first = config.dimensions[0]
    sources += [(source, r, first) for source in VARIANTS for r in config.variant_directions]
    checked: list[Checked] = []
    for source, directions, dimensions in tqdm(sources, "Sources", unit="sources"):
        with seeded(config.seed, torch.device("cpu")):
            checked.append(check(source(directions, dimensions), config))
    analysis = entropy_check_page(checked)
    run = {key: str(value) for key, value in asdict(config).items()}
    write_analysis(analysis, run, config.output)
    return analysis


def check(states: known_states.States, config: EntropyCheckConfig) -> Checked:
    """Train coders on states, and measure the entropy of the best one's codes."""
    starts = [_trained(states, config) for _ in range(config.starts)]
    # Choose the best coder on other states than those that are measured below.
    _, trained_bits, coder = min(starts, key=lambda start: start[0])
    gathered, rates = GatheredCodes(coder.cfg.d_sae), FiringRates(coder.cfg.d_sae)
    with torch.no_grad():
        for part in torch.arange(config.measured_states).split(STATES_AT_ONCE):
            codes = coder.encode(states.draw(len(part)))
            rates.update(codes)
            # States are drawn independently, so each state counts as its own document.
            gathered.add(codes != 0, part)
    recovery = eval_sae_on_synthetic_data(
        coder, states.dictionary, states.generator, config.measured_states, STATES_AT_ONCE
    )
    bounds, bits = gathered.entropy(), rates.entropy_bits
    return Checked(states, trained_bits, coder.cfg.d_sae, bounds, bits, recovery)


def _trained(
    states: known_states.States, config: EntropyCheckConfig
) -> tuple[float, float, BinaryEntropyTrainingSAE]:
    """Train a coder; return its loss, its bits before latents were first removed, and the coder.

    The coder is trained in rounds. After each round, latents that cost more than they explain are
    removed.
    """
    directions = states.dictionary.num_features
    price, bits = COST_OF_A_BIT / directions, 0.0
    settings = BinaryEntropyTrainingSAEConfig(
        d_in=states.dictionary.hidden_dim,
        d_sae=LATENTS_A_DIRECTION * directions,
        entropy_coefficient=price,
        entropy_start_step=0,
        entropy_warm_up_steps=0,
        normalize_activations="none",
    )
    coder = BinaryEntropyTrainingSAE(settings)
    number = config.training_states * (1 + (directions > MANY_DIRECTIONS))
    for training_round in range(ROUNDS):
        train_toy_sae(
            coder,
            states.dictionary,
            states.generator,
            training_samples=number,
            batch_size=BATCH,
            lr=LEARNING_RATE,
            lr_decay_steps=number // BATCH // 3,
        )
        sample = states.draw(config.measured_states)
        if training_round == 0:
            bits = measure(coder, sample).entropy_bits
        coder = _pruned(coder, sample, price)
    metrics = measure(coder, states.draw(config.measured_states))
    return metrics.fvu + price * metrics.entropy_bits, bits, coder


def _pruned(coder: AnyCoder, sample: Tensor, price: float) -> AnyCoder:
    """Remove latents that cost more than they explain on a sample, and refit the decoder."""
    fit = DecoderFit(coder.cfg.d_sae, coder.cfg.d_in)
    # Fit in parts, because each part is copied to float64.
    parts = sample.split(STATES_AT_ONCE)
    for part in parts:
        fit.add(coder.encode(part) != 0, part)
    mean = sample.mean(0)
    variance = sum((part - mean).square().sum().item() for part in parts)
    narrow = with_latents(coder, needed_latents(fit, variance, price))
    refit_decoder(narrow, [(part, part) for part in parts])
    return narrow


@torch.no_grad()
def needed_latents(fit: DecoderFit, variance: float, price: float, pull: float = 1.0) -> Tensor:
    """The latents left after removing, one by one, those that cost more than they explain.

    Without latent i the squared error rises by |w_i|^2 / (G^-1)_ii, where G is the Gram matrix of
    centred codes and w_i the decoder row (optimal brain surgeon, Hassibi and Stork, 1993). Training
    does not find these latents, because entropy has slope 0 at a firing rate of one half.

    variance: squared distance of the targets from their mean, summed over all tokens. price: share
    of this variance that one bit per token is worth. pull: ridge in tokens, which keeps G
    invertible if latents repeat each other. Returns the remaining latents, int64 [left], ascending.
    """
    rates = fit.counts.diagonal().double() / fit.tokens
    gram = (fit.counts + fit.counts.triu(1).T).double()
    gram.addr_(rates, rates, alpha=-fit.tokens)
    wanted = fit.target_sums - torch.outer(rates, fit.target_sum)
    cost = price * bernoulli_entropy(rates)
    left = (cost > 0).nonzero()[:, 0]
    while len(left):
        ridge = pull * torch.eye(len(left), dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(gram[left][:, left] + ridge)
        explained = (inverse @ wanted[left]).square().sum(1) / inverse.diagonal() / variance
        saved = cost[left] - explained
        worst = saved.argmax()
        if saved[worst] <= 0:
            break
        left = torch.cat([left[:worst], left[worst + 1 :]])
    return left
