"""Dependence between latents: mutual information of pairs, the strongest tree, and groups."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from torch import Tensor

# For two independent latents 2 N ln 2 times the mutual information in bits is chi-squared with one
# degree of freedom, and above this for one pair in 10^6.
SIGNIFICANT = 24.0
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Pairs:
    """Pairs of latents `one` and `other`, int64 [pairs], and their mutual information in bits."""

    one: Tensor
    other: Tensor
    information: Tensor

    def numbered(self, numbers: Tensor) -> "Pairs":
        """The same pairs with new numbers, int64 [latents], for the latents."""
        return Pairs(numbers[self.one], numbers[self.other], self.information)


def dependent_pairs(counts: Tensor, tokens: int) -> Pairs:
    """Pairs of latents whose firing depends on each other beyond chance.

    `counts`, int32 [latents, latents], has tokens on which two latents fired together in its upper
    triangle, and tokens on which each fired on its diagonal.
    """
    fired = counts.diagonal().double()
    margins = torch.xlogy(fired, fired) + torch.xlogy(tokens - fired, tokens - fired)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in torch.arange(len(counts)).split(ROWS_AT_ONCE):
        both, one, other = counts[rows].double(), fired[rows][:, None], fired
        cells = (both, one - both, other - both, tokens - one - other + both)
        # tokens x information (nats) = sum of n ln n over cells - sum of n ln n over margins.
        nats = torch.stack([torch.xlogy(cell, cell) for cell in cells]).sum(0)
        nats += tokens * math.log(tokens) - margins[rows][:, None] - margins
        # Counts below the diagonal are empty.
        beyond = (2 * nats > SIGNIFICANT).triu(1 + int(rows[0]))
        row, column = beyond.nonzero().unbind(1)
        found.append((rows[row], column, nats[row, column] / (tokens * math.log(2))))
    return Pairs(*(torch.cat(each) for each in zip(*found, strict=True)))


def strongest_tree(pairs: Pairs, latents: int) -> Pairs:
    """The spanning tree of most mutual information (Chow and Liu, 1968), strongest pair first.

    There are several trees if the pairs do not connect all latents.
    """
    graph = _graph(pairs.one, pairs.other, -pairs.information, latents)
    tree = minimum_spanning_tree(graph).tocoo()
    order = np.argsort(tree.data, kind="stable")
    row, column, data = (torch.from_numpy(each[order]) for each in (tree.row, tree.col, tree.data))
    return Pairs(row.long(), column.long(), -data)


def parents_of(tree: Pairs, latents: int) -> Tensor:
    """int64 [latents], the parent of each latent in its tree; the number of latents for a root."""
    graph = _graph(tree.one, tree.other, torch.ones_like(tree.information), latents)
    _, own_tree = connected_components(graph, directed=False)
    roots = torch.from_numpy(np.unique(own_tree, return_index=True)[1])
    # One more node connects all trees.
    joined = _graph(
        torch.cat([tree.one, torch.full_like(roots, latents)]),
        torch.cat([tree.other, roots]),
        torch.ones(len(tree.one) + len(roots)),
        latents + 1,
    )
    before: np.ndarray = breadth_first_order(joined, latents, directed=False)[1]
    return torch.from_numpy(before[:latents]).long()


def blocks_of(tree: Pairs, latents: int, size: int) -> Tensor:
    """Group latents along the strongest pairs of a tree: int64 [blocks, size].

    Smaller groups are filled up with the number of latents.
    """
    group_of = [[latent] for latent in range(latents)]
    for one, other in zip(tree.one.tolist(), tree.other.tolist(), strict=True):
        mine, theirs = group_of[one], group_of[other]
        if len(mine) + len(theirs) <= size:
            mine += theirs
            for latent in theirs:
                group_of[latent] = mine
    groups = [group for latent, group in enumerate(group_of) if group[0] == latent]
    return torch.tensor([group + [latents] * (size - len(group)) for group in groups])


def _graph(one: Tensor, other: Tensor, weights: Tensor, nodes: int) -> coo_array:
    return coo_array((weights.numpy(), (one.numpy(), other.numpy())), shape=(nodes, nodes))
