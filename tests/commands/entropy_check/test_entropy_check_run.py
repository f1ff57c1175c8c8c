"""Latents are removed if their bits cost more than they explain."""

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.commands.entropy_check.entropy_check_run import needed_latents
from sae_binary_ext.measure import DecoderFit

TOKENS, WIDTH = 2000, 24
PRICE = 0.01


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def fitted(codes: Tensor, targets: Tensor) -> tuple[DecoderFit, float]:
    fit = DecoderFit(codes.shape[1], targets.shape[1])
    for part in torch.arange(len(codes)).split(700):
        fit.add(codes[part], targets[part])
    return fit, (targets - targets.mean(0)).square().sum().item()


def left_of(codes: Tensor, targets: Tensor, price: float = PRICE) -> list[int]:
    return needed_latents(*fitted(codes, targets), price).tolist()


def fair(generator: torch.Generator, latents: int) -> Tensor:
    return torch.rand(TOKENS, latents, generator=generator) < 0.5


def targets_of(codes: Tensor, generator: torch.Generator) -> Tensor:
    directions = torch.randn(codes.shape[1], WIDTH, generator=generator, dtype=torch.float64)
    return codes.double() @ directions + 3


def test_latents_that_others_tell_go(generator: torch.Generator):
    codes = fair(generator, 6)
    targets = targets_of(codes, generator)
    alike, opposite = codes[:, [0]], ~codes[:, [1]]
    both, silent = codes[:, [2]] & codes[:, [3]], torch.zeros_like(alike)
    everything = torch.cat([silent, both, codes, alike, opposite], dim=1)
    left = left_of(everything, targets)
    # If two latents always fire alike, either of them may stay.
    of_each = [{2, 8}, {3, 9}, {4}, {5}, {6}, {7}]
    assert len(left) == 6
    assert all(len(own & set(left)) == 1 for own in of_each)


def test_what_explains_more_than_its_bits_cost_stays(generator: torch.Generator):
    codes = fair(generator, 4)
    targets = targets_of(codes, generator)
    # Each latent costs one bit and explains about a quarter of the variance.
    assert left_of(codes, targets, price=0.1) == [0, 1, 2, 3]
    assert left_of(codes, targets, price=1.0) == []


def test_each_removal_is_the_best_one_by_trial(generator: torch.Generator):
    codes = fair(generator, 7) & fair(generator, 7)
    codes[:, 6] = codes[:, 0] | codes[:, 1]
    targets = targets_of(codes[:, :5], generator)
    targets += 2 * torch.randn(targets.shape, generator=generator, dtype=torch.float64)
    price = 0.05

    def cost(latents: list[int]) -> float:
        chosen = codes[:, latents].double()
        features = torch.cat([chosen, torch.ones(TOKENS, 1, dtype=torch.float64)], dim=1)
        rest = targets - features @ torch.linalg.lstsq(features, targets).solution
        variance = (targets - targets.mean(0)).square().sum()
        bits = bernoulli_entropy(chosen.mean(0)).sum()
        return (rest.square().sum() / variance + price * bits).item()

    left = list(range(7))
    while left:
        trials = {out: cost([each for each in left if each != out]) for out in left}
        best = min(trials, key=trials.__getitem__)
        if trials[best] >= cost(left):
            break
        left.remove(best)
    assert 0 < len(left) < 5
    assert needed_latents(*fitted(codes, targets), price, pull=1e-9).tolist() == left
