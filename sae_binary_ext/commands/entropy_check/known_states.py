"""Hidden states of known entropy: sums of random directions with 0/1 coefficients, as in Cho et al.
(arXiv 2509.20997), from SAELens' synthetic module."""

import math
from dataclasses import dataclass

import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding import bernoulli_entropy

# Directions are this long, and states are read as they are: brought to a norm of the square root
# of their dimensions, one step of Adam moves a latent's input by several of its deviations in 576
# dimensions, and few directions are then never told apart.
LENGTH = 2.0
# Standard deviation of the noise on each dimension, of the signal's.
NOISE = 0.1
CORRELATION = 0.8
UNEQUAL = (0.05, 0.5)


@dataclass(frozen=True)
class States:
    """A source of hidden states.

    Attributes:
        name: what is special about them.
        dictionary: SAELens', of the directions.
        generator: SAELens', of the coefficients.
        truth: entropy of the coefficients, in bits.
    """

    name: str
    dictionary: FeatureDictionary
    generator: ActivationGenerator
    truth: float


class NoisyDictionary(FeatureDictionary):
    """Directions whose sums have noise on every dimension."""

    @override
    def forward(self, feature_activations: Tensor) -> Tensor:
        """States [states, dimensions] of coefficients [states, directions]."""
        states = super().forward(feature_activations)
        # A direction present half of the time has a variance of a quarter of its squared length.
        deviation = LENGTH / 2 * math.sqrt(self.num_features / self.hidden_dim)
        return states + NOISE * deviation * torch.randn_like(states)


def fair(directions: int, dimensions: int) -> States:
    """Coefficients that are 1 half of the time: r bits."""
    generator = ActivationGenerator(directions, 0.5)
    return States("fair", _dictionary(directions, dimensions), generator, float(directions))


def unequal(directions: int, dimensions: int) -> States:
    """Coefficients from rare to fair ones: the sum of their entropies."""
    rates = torch.linspace(*UNEQUAL, directions)
    generator = ActivationGenerator(directions, rates)
    truth = bernoulli_entropy(rates.double()).sum().item()
    return States("unequal", _dictionary(directions, dimensions), generator, truth)


def correlated(directions: int, dimensions: int) -> States:
    """Fair coefficients in pairs, each the sign of one of two correlated normal numbers."""
    correlations = torch.eye(directions)
    for first in range(0, directions - 1, 2):
        correlations[first, first + 1] = correlations[first + 1, first] = CORRELATION
    generator = ActivationGenerator(directions, 0.5, correlation_matrix=correlations)
    # Both are positive with this probability (Sheppard, 1899), and both negative.
    alike = 0.25 + math.asin(CORRELATION) / (2 * math.pi)
    of_pair = 1 + bernoulli_entropy(torch.tensor(2 * alike, dtype=torch.float64)).item()
    truth = directions // 2 * of_pair + directions % 2
    return States("pairs", _dictionary(directions, dimensions), generator, truth)


def noisy(directions: int, dimensions: int) -> States:
    """As fair, with noise."""
    dictionary = NoisyDictionary(directions, dimensions, initializer=_lengthen)
    return States("noise", dictionary, ActivationGenerator(directions, 0.5), float(directions))


def _dictionary(directions: int, dimensions: int) -> FeatureDictionary:
    return FeatureDictionary(directions, dimensions, initializer=_lengthen)


@torch.no_grad()
def _lengthen(dictionary: FeatureDictionary) -> None:
    """Random unit directions to LENGTH."""
    dictionary.feature_vectors.mul_(LENGTH)
