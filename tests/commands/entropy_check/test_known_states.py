"""The known entropy of states agrees with the entropy counted in a sample."""

import math

import pytest
import torch

from sae_binary_ext.coding.kernels import seeded
from sae_binary_ext.commands.entropy_check.known_states import (
    States,
    correlated,
    fair,
    noisy,
    unequal,
)

NUMBER, DIRECTIONS, DIMENSIONS = 100_000, 4, 32


def counted_bits(coefficients: torch.Tensor) -> float:
    """Entropy in bits of the joint states of coefficients, from their counts in a sample."""
    _, counts = coefficients.unique(dim=0, return_counts=True)
    shares = counts.double() / len(coefficients)
    return -(shares * shares.log2()).sum().item()


@pytest.mark.parametrize("source", [fair, unequal, correlated, noisy])
def test_the_truth_is_what_a_sample_counts(source):
    with seeded(0, torch.device("cpu")):
        states: States = source(DIRECTIONS, DIMENSIONS)
        coefficients = states.generator.sample(NUMBER)
    assert set(coefficients.unique().tolist()) == {0.0, 1.0}
    # Counting 16 states in NUMBER draws gives about 16 / (2 ln 2 NUMBER) bits too few.
    assert counted_bits(coefficients) == pytest.approx(states.truth, abs=0.01)


@torch.no_grad()
def test_noise_is_a_tenth_of_the_signal():
    with seeded(0, torch.device("cpu")):
        states = noisy(DIRECTIONS, DIMENSIONS)
        coefficients = states.generator.sample(NUMBER)
        signal = coefficients @ states.dictionary.feature_vectors
        noise = states.dictionary(coefficients) - signal
    deviation = math.sqrt(signal.var(dim=0).sum() / DIMENSIONS)
    assert noise.std().item() == pytest.approx(0.1 * deviation, rel=0.02)
    assert noise.std(dim=0).max() < 1.02 * noise.std(dim=0).min()
