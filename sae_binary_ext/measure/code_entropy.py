"""Upper and lower bounds on the entropy of binary codes, from the dependence between latents.

If latents were independent, the entropy of a code would be the sum of the entropies of the firing
rates (H in Cho et al., arXiv 2509.20997). Dependence can only lower it. Two models of the
dependence give upper bounds: each is fitted to one half of the tokens, and its cross-entropy on the
other half is at least the entropy, in expectation. The lower bound is the entropy of the observed
codes, which is at most log2 N for N tokens.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding import pack, unpack
from sae_binary_ext.coding.kernels.sparse import whole_matrix
from sae_binary_ext.measure.documents import Estimate, WeightedSums, document_weights, estimate_of

# Number of latents whose pairs are counted (268 MB), those of the highest entropy. All other
# latents count as independent.
MOST_PAIRED = 8192
LATENTS_A_BLOCK = 8
# Priors in tokens added to the counts. A latent given another gets half a token active and half a
# token silent. A block gets ten tokens of independent latents.
HALF, BLOCK_PRIOR = 0.5, 10.0
# If two latents are independent, 2 N ln 2 times their mutual information in bits is chi-squared
# with one degree of freedom. By chance, one pair in 10^6 exceeds this value.
SIGNIFICANT = 24.0
TOKENS_AT_ONCE, ROWS_AT_ONCE = 1024, 256


@dataclass(frozen=True)
class CodeEntropy:
    """Entropy of a coder's codes, in bits a token.

    Attributes:
        fitted_tokens, measured_tokens: sizes of the two halves, drawn at random.
        independent: upper bound from firing rates, fitted to one half and measured on the other.
        tree: upper bound from the tree of most mutual information, which predicts each latent from
            one other latent.
        blocks: upper bound from groups of up to eight latents that depend on each other most.
        seen: lower bound, the entropy of the observed codes.
        most_seen: the value of seen if no two tokens had the same code.
        dependent_pairs: number of pairs of latents that depend on each other more than by chance.
    """

    fitted_tokens: int
    measured_tokens: int
    independent: Estimate
    tree: Estimate
    blocks: Estimate
    seen: float
    most_seen: float
    dependent_pairs: int


class GatheredCodes:
    """Keeps the codes of a stream of text in memory, as one bit for each latent and token."""

    def __init__(self, latents: int) -> None:
        self._latents = latents
        self._packed: list[Tensor] = []
        self._documents: list[Tensor] = []

    def add(self, active: Tensor, documents: Tensor) -> None:
        """Keep codes, bool [tokens, latents], and documents, int64 [tokens], both on the CPU."""
        self._packed.append(pack(active))
        self._documents.append(documents)

    def entropy(self) -> CodeEntropy:
        """Bounds on the entropy of these codes; ValueError if there are fewer than two tokens."""
        packed, documents = torch.cat(self._packed), torch.cat(self._documents)
        if len(packed) < 2:
            raise ValueError(
                f"tokens={len(packed)}: give at least 2, to fit to one and measure another."
            )
        # Split tokens at random, so that both halves have tokens of all documents. The bounds are
        # for the whole text, and firing rates differ between documents.
        order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(0))
        fitted = order < len(packed) // 2
        models = _fit_models(packed[fitted], self._latents)
        bounds = self._measure(models, packed[~fitted], documents[~fitted])
        _, counts = np.unique(packed.numpy(), axis=0, return_counts=True)
        shares = torch.from_numpy(counts / counts.sum())
        return CodeEntropy(
            int(fitted.sum()),
            int((~fitted).sum()),
            *bounds,
            seen=-(shares * shares.log2()).sum().item(),
            most_seen=math.log2(len(packed)),
            dependent_pairs=models.dependent_pairs,
        )

    def _measure(self, models: "_Models", packed: Tensor, documents: Tensor) -> list[Estimate]:
        numbers, row = documents.unique(return_inverse=True)
        rows = torch.zeros(len(numbers), 4, dtype=torch.float64)
        for place in torch.arange(len(packed)).split(TOKENS_AT_ONCE):
            bits = models.bits(unpack(packed[place], self._latents, torch.bool))
            # The first column counts tokens.
            rows.index_add_(0, row[place], F.pad(bits, (1, 0), value=1.0))
        sums = WeightedSums(4)
        sums.add(rows, document_weights(numbers.tolist()))
        return [estimate_of(sums.sums[:, of] / sums.sums[:, 0]) for of in (1, 2, 3)]


class _Models(NamedTuple):
    """Lengths of codes in bits under three models of their distribution.

    A missing parent or member has the index `latents`, where codes get a column of zeros.

    Attributes:
        alone: float64 [2, latents], bits that each latent costs if silent and if active.
        parents: int64 [latents], the latent from which each latent is predicted.
        given: float64 [4, latents], bits; the row is 2 x the parent's code + the latent's code.
        members: int64 [blocks, LATENTS_A_BLOCK], the latents of each block.
        together: float64 [blocks, 2^LATENTS_A_BLOCK], bits of each packed code of a block.
        dependent_pairs: number of pairs of latents that depend on each other.
    """

    alone: Tensor
    parents: Tensor
    given: Tensor
    members: Tensor
    together: Tensor
    dependent_pairs: int

    def bits(self, active: Tensor) -> Tensor:
        """Bits of codes under each model, float64 [tokens, 3]; codes are bool [tokens, latents]."""
        silent, fires = self.alone
        independent = torch.where(active, fires, silent).sum(1)
        padded = F.pad(active, (0, 1))
        state = 2 * padded[:, self.parents].long() + active
        tree = self.given.gather(0, state).sum(1)
        codes = _block_codes(padded, self.members)
        blocks = self.together[torch.arange(len(self.members)), codes].sum(1)
        return torch.stack([independent, tree, blocks], dim=1)


def _fit_models(packed: Tensor, latents: int) -> _Models:
    counts = torch.zeros(latents, dtype=torch.float64)
    for part in packed.split(TOKENS_AT_ONCE):
        counts += unpack(part, latents, torch.float32).sum(0)
    tokens = len(packed)
    rates = (counts + HALF) / (tokens + 2 * HALF)
    alone = -torch.stack([(1 - rates).log2(), rates.log2()])

    paired = (counts / tokens - 0.5).abs().argsort()[:MOST_PAIRED].sort().values
    # The upper triangle counts the tokens on which two latents fired together.
    counted = torch.zeros(len(paired), len(paired), dtype=torch.int32)
    for part in packed.split(TOKENS_AT_ONCE):
        whole_matrix(unpack(part, latents, torch.bool)[:, paired]).add_pair_counts(counted)
    pairs = dependent_pairs(counted, tokens)
    among = strongest_tree(pairs, len(paired))
    tree = Pairs(paired[among.one], paired[among.other], among.information)
    parents = parents_of(tree, latents)
    both = _fired_together(counted, paired, parents)
    given = _conditional_bits(counts, F.pad(counts, (0, 1))[parents], both, tokens)

    members = blocks_of(tree, latents, LATENTS_A_BLOCK)
    together = _block_bits(packed, latents, members, rates)
    return _Models(alone, parents, given, members, together, len(pairs.information))


def _fired_together(counted: Tensor, paired: Tensor, parents: Tensor) -> Tensor:
    """float64 [latents]: tokens on which a latent and its parent fired; 0 if it has no parent."""
    latents = len(parents)
    place = torch.full((latents + 1,), -1)
    place[paired] = torch.arange(len(paired))
    has_one = parents < latents
    ends = torch.stack([place[:latents][has_one], place[parents[has_one]]])
    both = torch.zeros(latents, dtype=torch.float64)
    both[has_one] = counted[ends.amin(0), ends.amax(0)].double()
    return both


def _conditional_bits(counts: Tensor, parents: Tensor, both: Tensor, tokens: int) -> Tensor:
    """float64 [4, latents]: bits of a latent given its parent's code, from counts of tokens."""
    alone, neither_parent = counts - both, tokens - parents
    rates = ((alone + HALF) / (neither_parent + 2 * HALF), (both + HALF) / (parents + 2 * HALF))
    return torch.stack([-each.log2() for rate in rates for each in (1 - rate, rate)])


def _block_codes(padded: Tensor, members: Tensor) -> Tensor:
    """int64 [tokens, blocks], the code of each block as one number."""
    return pack(padded[:, members])[..., 0].long()


def _block_bits(packed: Tensor, latents: int, members: Tensor, rates: Tensor) -> Tensor:
    """float64 [blocks, 2^LATENTS_A_BLOCK]: bits of each code of a block."""
    states = 2**LATENTS_A_BLOCK
    seen = torch.zeros(len(members) * states, dtype=torch.float64)
    block = torch.arange(len(members))
    for part in packed.split(TOKENS_AT_ONCE):
        codes = _block_codes(F.pad(unpack(part, latents, torch.bool), (0, 1)), members)
        seen += torch.bincount((block * states + codes).flatten(), minlength=len(seen))
    each = unpack(torch.arange(states, dtype=torch.uint8)[:, None], LATENTS_A_BLOCK, torch.bool)
    # A missing member counts as never active.
    of_members = F.pad(rates, (0, 1))[members][:, None]
    independent = torch.where(each, of_members, 1 - of_members).prod(2)
    counts = seen.view(-1, states) + BLOCK_PRIOR * independent
    return -(counts / (len(packed) + BLOCK_PRIOR)).log2()


class Pairs(NamedTuple):
    """Pairs of latents `one` and `other`, int64 [pairs], and their mutual information in bits."""

    one: Tensor
    other: Tensor
    information: Tensor


def dependent_pairs(counts: Tensor, tokens: int) -> Pairs:
    """Pairs of latents that depend on each other more than by chance.

    `counts`, int32 [latents, latents], counts the tokens on which two latents fired together in its
    upper triangle, and the tokens on which each latent fired on its diagonal.
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
        # The triangle below the diagonal has no counts.
        beyond = (2 * nats > SIGNIFICANT).triu(1 + int(rows[0]))
        row, column = beyond.nonzero().unbind(1)
        found.append((rows[row], column, nats[row, column] / (tokens * math.log(2))))
    return Pairs(*(torch.cat(each) for each in zip(*found, strict=True)))


def strongest_tree(pairs: Pairs, latents: int) -> Pairs:
    """The tree with the most mutual information (Chow and Liu, 1968), strongest pair first.

    The result is several trees if the pairs do not connect all latents.
    """
    graph = _graph(pairs.one, pairs.other, -pairs.information, latents)
    tree = minimum_spanning_tree(graph).tocoo()
    order = np.argsort(tree.data, kind="stable")
    row, column, data = (torch.from_numpy(each[order]) for each in (tree.row, tree.col, tree.data))
    return Pairs(row.long(), column.long(), -data)


def parents_of(tree: Pairs, latents: int) -> Tensor:
    """int64 [latents], the parent of each latent in its tree. A root's parent is `latents`."""
    graph = _graph(tree.one, tree.other, torch.ones_like(tree.information), latents)
    _, own_tree = connected_components(graph, directed=False)
    roots = torch.from_numpy(np.unique(own_tree, return_index=True)[1])
    # An extra node connects the roots of all trees.
    one = torch.cat([tree.one, torch.full_like(roots, latents)])
    joined = _graph(one, torch.cat([tree.other, roots]), torch.ones(len(one)), latents + 1)
    before: np.ndarray = breadth_first_order(joined, latents, directed=False)[1]
    return torch.from_numpy(before[:latents]).long()


def blocks_of(tree: Pairs, latents: int, size: int) -> Tensor:
    """Group latents along the strongest pairs of a tree: int64 [blocks, size].

    Smaller groups are filled up with the index `latents`, which no latent has.
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
