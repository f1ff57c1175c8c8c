"""Dependent pairs of latents are found in codes with planted dependence."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_binary_ext.measure.code_entropy import (
    Pairs,
    blocks_of,
    dependent_pairs,
    parents_of,
    strongest_tree,
)

TOKENS = 4000


def counts_of(active: Tensor) -> Tensor:
    codes = active.double()
    return (codes.T @ codes).triu().int()


def information(one: Tensor, other: Tensor) -> float:
    """Mutual information in bits, computed by its definition."""
    total = 0.0
    for a, b in itertools.product((False, True), repeat=2):
        both = ((one == a) & (other == b)).double().mean().item()
        margins = (one == a).double().mean().item() * (other == b).double().mean().item()
        total += both * math.log2(both / margins) if both else 0.0
    return total


@pytest.fixture
def codes() -> Tensor:
    """Latents 0 and 3 differ on a tenth of tokens, 1 is the opposite of 4, 2 is alone, 5 dead."""
    coins = torch.rand(TOKENS, 4) < torch.tensor([0.5, 0.3, 0.1, 0.1])
    zero, one, two, flips = coins.unbind(1)
    return torch.stack([zero, one, two, zero ^ flips, ~one, torch.zeros_like(zero)], dim=1)


def test_the_pairs_beyond_chance_are_the_planted_ones_with_their_information(codes: Tensor):
    pairs = dependent_pairs(counts_of(codes), TOKENS)
    assert list(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)) == [(0, 3), (1, 4)]
    expected = [information(codes[:, 0], codes[:, 3]), information(codes[:, 1], codes[:, 4])]
    assert pairs.information.tolist() == pytest.approx(expected, rel=1e-9)


def test_independent_latents_have_hardly_a_pair():
    codes = torch.rand(TOKENS, 300) < 0.2
    # There are 44,850 pairs, and chance alone finds one pair in a million.
    assert len(dependent_pairs(counts_of(codes), TOKENS).one) <= 1


def test_pairs_are_found_across_the_pieces_that_they_are_counted_in():
    codes = torch.rand(TOKENS, 600) < 0.2
    codes[:, 590] = codes[:, 3]
    pairs = dependent_pairs(counts_of(codes), TOKENS)
    assert (3, 590) in set(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True))


def test_the_tree_leaves_out_the_weakest_pair_of_a_circle():
    triangle = Pairs(
        torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.tensor([0.3, 0.1, 0.2])
    )
    tree = strongest_tree(triangle, 5)
    assert {(a, b) for a, b in zip(tree.one.tolist(), tree.other.tolist(), strict=True)} == {
        (0, 1),
        (1, 2),
    }
    np.testing.assert_allclose(tree.information, [0.3, 0.2])


def test_every_latent_but_one_of_each_tree_has_a_neighbour_for_a_parent():
    tree = Pairs(torch.tensor([0, 1, 4]), torch.tensor([1, 2, 5]), torch.ones(3))
    parents = parents_of(tree, 6)
    roots = (parents == 6).nonzero()[:, 0].tolist()
    assert len(roots) == 3
    assert 3 in roots
    edges = {(0, 1), (1, 2), (4, 5)}
    found = {
        (min(child, parent), max(child, parent))
        for child, parent in enumerate(parents.tolist())
        if parent < 6
    }
    assert found == edges


def test_blocks_join_the_strongest_pairs_as_long_as_there_is_room():
    chain = Pairs(
        torch.tensor([0, 1, 3, 2]), torch.tensor([1, 2, 4, 3]), torch.tensor([4.0, 3, 2, 1])
    )
    blocks = blocks_of(chain, 6, 3)
    members = [[latent for latent in block if latent < 6] for block in blocks.tolist()]
    assert sorted(map(sorted, members)) == [[0, 1, 2], [3, 4], [5]]
    assert blocks.shape == (3, 3)
