"""Latents that imply others, latents that are duplicates, and the hierarchy that they form."""

from collections import Counter
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array, csr_array

from sae_binary_ext.commands.rules.rule_codes import PackedCodes

# A implies B if B fires on this share of A's firings, and A fires on so many tokens.
SHARE, FEWEST_FIRINGS = 0.99, 50
# B has to fire this many times as often where A fires as elsewhere in the text on average.
LIFT = 2.0
# Jaccard index from which on two latents are duplicates.
ALIKE = 0.95
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Implication:
    """Where `latent` fires, `implied` fires too, with exact counts of tokens.

    Attributes:
        both: tokens on which both fire.
        fired, implied_fired: tokens on which each fires.
        lift: share of firings with `implied`, over the firing rate of `implied`.
    """

    latent: int
    implied: int
    both: int
    fired: int
    implied_fired: int
    lift: float


@dataclass(frozen=True)
class Duplicates:
    """Two latents, the first one lower, that fire on nearly the same tokens."""

    one: int
    other: int
    both: int
    jaccard: float


@dataclass(frozen=True)
class Associations:
    """How the latents of a coder imply each other.

    Attributes:
        tokens: tokens read.
        counted: latents that fire on at least FEWEST_FIRINGS tokens.
        implications: all of them, the one with most firings first. A pair of duplicates may be
            among them.
        duplicates: all pairs of duplicates.
        in_duplicates: latents that have a duplicate.
        links: links of the hierarchy, from a group of latents to a more general group. Duplicates
            and latents that imply each other are one group. A link is left out if others lead from
            the one group to the other.
        depths: number of latents by depth: 0 for a latent that is implied and implies none, else
            the length of the longest chain above it. Latents without implications are left out.
    """

    coder: str
    tokens: int
    counted: int
    implications: list[Implication]
    duplicates: list[Duplicates]
    in_duplicates: int
    links: list[tuple[list[int], list[int]]]
    depths: list[int]

    @property
    def depth(self) -> int:
        """Length of the longest chain."""
        return max(len(self.depths) - 1, 0)

    @property
    def implying(self) -> int:
        """Latents that imply another one."""
        return len({each.latent for each in self.implications})


def associate(coder: str, codes: PackedCodes) -> Associations:
    """Associations between the latents of one coder; the rows of `codes` are tokens."""
    both, fired = pair_counts(codes)
    implications = _implications(both, fired, len(codes))
    duplicates = _duplicates(both, fired)
    links, depths = _hierarchy(implications, duplicates)
    return Associations(
        coder,
        len(codes),
        int((fired >= FEWEST_FIRINGS).sum()),
        implications,
        duplicates,
        len({latent for each in duplicates for latent in (each.one, each.other)}),
        links,
        depths,
    )


def pair_counts(codes: PackedCodes) -> tuple[coo_array, Counts]:
    """Tokens on which two latents fire, and on which each fires: int64 [latents].

    The first is a symmetric sparse matrix [latents, latents] of int64, without pairs that never
    fire together. Latents that fire on fewer than FEWEST_FIRINGS tokens are left out of pairs,
    because they neither imply nor are duplicates.
    """
    fired = codes.counts(torch.ones(len(codes), 1))[:, 0].long()
    enough = fired >= FEWEST_FIRINGS
    parts: list[Counts] = []
    first = 0
    for part in codes.parts():
        entries = (part * enough).nonzero().numpy()
        entries[:, 0] += first
        parts.append(entries)
        first += len(part)
    row, column = np.concatenate(parts).T
    ones = np.ones(len(row), dtype=np.int64)
    active = csr_array((ones, (row, column)), shape=(len(codes), codes.latents))
    return coo_array(active.T @ active), fired.numpy()


def _implications(both: coo_array, fired: Counts, tokens: int) -> list[Implication]:
    one, other, together = both.row, both.col, both.data
    share = together / fired[one]
    lift = share * tokens / fired[other]
    chosen = (one != other) & (share >= SHARE) & (lift >= LIFT)
    found = [
        Implication(*map(int, counts), lift=float(of_pair))
        for *counts, of_pair in zip(
            one[chosen],
            other[chosen],
            together[chosen],
            fired[one[chosen]],
            fired[other[chosen]],
            lift[chosen],
            strict=True,
        )
    ]
    return sorted(found, key=lambda each: (-each.fired, each.latent, each.implied))


def _duplicates(both: coo_array, fired: Counts) -> list[Duplicates]:
    one, other, together = both.row, both.col, both.data
    jaccard = together / (fired[one] + fired[other] - together)
    chosen = (one < other) & (jaccard >= ALIKE)
    found = zip(one[chosen], other[chosen], together[chosen], jaccard[chosen], strict=True)
    return sorted(
        (Duplicates(int(a), int(b), int(count), float(alike)) for a, b, count, alike in found),
        key=lambda each: (each.one, each.other),
    )


def _hierarchy(
    implications: list[Implication], duplicates: list[Duplicates]
) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Links between groups of latents, and numbers of latents by depth."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_edges_from((each.latent, each.implied) for each in implications)
    for each in duplicates:
        if each.one in graph or each.other in graph:
            graph.add_edges_from([(each.one, each.other), (each.other, each.one)])
    groups = nx.condensation(graph)
    members = {node: sorted(groups.nodes[node]["members"]) for node in groups}
    reduced = nx.transitive_reduction(groups)
    links = sorted((members[one], members[other]) for one, other in reduced.edges)
    depths: dict[int, int] = {}
    for node in reversed(list(nx.topological_sort(groups))):
        depths[node] = max((depths[above] + 1 for above in groups.successors(node)), default=0)
    sizes = Counter[int]()
    for node, depth in depths.items():
        sizes[depth] += len(members[node])
    return links, [sizes[depth] for depth in range(len(sizes))]
