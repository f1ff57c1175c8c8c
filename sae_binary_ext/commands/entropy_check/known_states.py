"""Hidden states of known entropy, from SAELens' synthetic module.

They are sums of random directions with 0/1 coefficients, as in Cho et al. (arXiv 2509.20997).
"""

import math
from dataclasses import dataclass

import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.coding import bernoulli_entropy

# Length of a direction. States are not normalised: with a norm of sqrt(dimensions), one step of
# Adam would move a latent's input by several deviations, and few directions are ever separated.
LENGTH = 2.0
# Standard deviation of the noise on each dimension, as a share of the signal's.
NOISE = 0.1
CORRELATION = 0.8
UNEQUAL = (0.05, 0.5)


@dataclass(frozen=True)
class States:
    """A source of hidden states.

    Attributes:
        name: of this kind of states.
        dictionary: SAELens' dictionary of directions.
        generator: SAELens' generator of coefficients.
        truth: entropy of the coefficients, in bits.
    """

    name: str
    dictionary: FeatureDictionary
    generator: ActivationGenerator
    truth: float


class NoisyDictionary(FeatureDictionary):
    """Directions whose sums get noise on every dimension."""

    @override
    def forward(self, feature_activations: Tensor) -> Tensor:
        """States [states, dimensions] of coefficients [states, directions]."""
        states = super().forward(feature_activations)
        # A coefficient that is 1 half of the time has a variance of 1/4.
        deviation = LENGTH / 2 * math.sqrt(self.num_features / self.hidden_dim)
        return states + NOISE * deviation * torch.randn_like(states)


def fair(directions: int, dimensions: int) -> States:
    """Coefficients that are 1 half of the time: the entropy is one bit per direction."""
    generator = ActivationGenerator(directions, 0.5)
    return States("fair", _dictionary(directions, dimensions), generator, float(directions))


def unequal(directions: int, dimensions: int) -> States:
    """Coefficients with different rates: the entropy is the sum of their entropies."""
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
    # Probability that both are positive, and that both are negative (Sheppard, 1899).
    alike = 0.25 + math.asin(CORRELATION) / (2 * math.pi)
    of_pair = 1 + bernoulli_entropy(torch.tensor(2 * alike, dtype=torch.float64)).item()
    truth = directions // 2 * of_pair + directions % 2
    return States("pairs", _dictionary(directions, dimensions), generator, truth)


def noisy(directions: int, dimensions: int) -> States:
    """Fair coefficients, and noise on the states."""
    dictionary = NoisyDictionary(directions, dimensions, initializer=_lengthen)
    return States("noise", dictionary, ActivationGenerator(directions, 0.5), float(directions))


def _dictionary(directions: int, dimensions: int) -> FeatureDictionary:
    return FeatureDictionary(directions, dimensions, initializer=_lengthen)


@torch.no_grad()
def _lengthen(dictionary: FeatureDictionary) -> None:
    """Scale unit directions to LENGTH."""
    dictionary.feature_vectors.mul_(LENGTH)
