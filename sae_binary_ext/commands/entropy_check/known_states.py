"""Makes hidden states of known entropy with SAELens' synthetic module.

States are sums of random directions with 0/1 coefficients, as in Cho et al. (arXiv 2509.20997).
"""

import math
from typing import NamedTuple

import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding import bernoulli_entropy

# Length of a direction. States are not normalised to a norm of sqrt(dimensions): then one step of
# Adam would move a latent's input by several deviations, and coders would separate few directions.
LENGTH = 2.0
# Standard deviation of the noise on each dimension, as a share of the signal's deviation.
NOISE = 0.1
CORRELATION, UNEQUAL = 0.8, (0.05, 0.5)


class States(NamedTuple):
    """A kind of hidden states: SAELens' directions and coefficients, and their entropy in bits."""

    name: str
    dictionary: FeatureDictionary
    generator: ActivationGenerator
    truth: float

    @torch.no_grad()
    def draw(self, number: int) -> Tensor:
        """Hidden states [number, dimensions]."""
        return self.dictionary(self.generator.sample(number))


class Directions(FeatureDictionary):
    """Random directions of equal length; `noise` on their sums is a share of the signal."""

    def __init__(self, directions: int, dimensions: int, noise: float = 0.0) -> None:
        super().__init__(directions, dimensions, initializer=None)
        self.feature_vectors.data.mul_(LENGTH)
        # A coefficient that is 1 half of the time has a variance of 1/4.
        self.noise = noise * (LENGTH / 2 * math.sqrt(directions / dimensions))

    @override
    def forward(self, feature_activations: Tensor) -> Tensor:
        states = super().forward(feature_activations)
        return states + self.noise * torch.randn_like(states) if self.noise else states


def fair(directions: int, dimensions: int, noise: float = 0.0) -> States:
    """States whose coefficients are 1 half of the time: the entropy is one bit per direction."""
    dictionary = Directions(directions, dimensions, noise)
    generator = ActivationGenerator(directions, 0.5)
    return States("noise" if noise else "fair", dictionary, generator, float(directions))


def noisy(directions: int, dimensions: int) -> States:
    """States with coefficients that are 1 half of the time, plus noise."""
    return fair(directions, dimensions, NOISE)


def unequal(directions: int, dimensions: int) -> States:
    """States whose coefficients have different rates: the entropy is the sum over coefficients."""
    rates = torch.linspace(*UNEQUAL, directions)
    generator = ActivationGenerator(directions, rates)
    truth = bernoulli_entropy(rates.double()).sum().item()
    return States("unequal", Directions(directions, dimensions), generator, truth)


def correlated(directions: int, dimensions: int) -> States:
    """States with coefficients in pairs, which are the signs of two correlated normal numbers."""
    correlations = torch.eye(directions)
    for first in range(0, directions - 1, 2):
        correlations[first, first + 1] = correlations[first + 1, first] = CORRELATION
    generator = ActivationGenerator(directions, 0.5, correlation_matrix=correlations)
    # Probability that both numbers are positive, equal to that of both negative (Sheppard, 1899).
    alike = 0.25 + math.asin(CORRELATION) / (2 * math.pi)
    of_pair = 1 + bernoulli_entropy(torch.tensor(2 * alike, dtype=torch.float64)).item()
    truth = directions // 2 * of_pair + directions % 2
    return States("pairs", Directions(directions, dimensions), generator, truth)
