"""Entropy of binary codes: as if latents were independent, and bounds that admit dependence.

With independent latents the entropy of a code is the sum of the entropies of its latents' firing
rates (the H of Cho et al., arXiv 2509.20997). Dependence only takes from it. Two models that have
some of the dependence in them bound it from above, each fitted to one half of the tokens and
measured on the other: what a model needs of codes it has not seen, its cross-entropy, is never less
than the entropy, in expectation. From below there is the entropy of the codes that were seen, which
no sample of N tokens can make more than log2 N.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae_binary_ext.coding import pack, unpack
from sae_binary_ext.coding.kernels.sparse import whole_matrix
from sae_binary_ext.measure.dependence import (
    blocks_of,
    dependent_pairs,
    parents_of,
    strongest_tree,
)
from sae_binary_ext.measure.intervals import Estimate, WeightedSums, document_weights

# Latents whose pairs are counted, those of most entropy: 268 MB. Others count as independent.
MOST_PAIRED = 8192
LATENTS_A_BLOCK = 8
# What a model takes for granted before it has seen a token: of a latent given another, half a
# token firing and half a token silent; of a block, tokens of independent latents.
HALF, BLOCK_PRIOR = 0.5, 10.0
# Of unpacked codes.
TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class CodeEntropy:
    """Entropy of a coder's codes, in bits a token.

    Attributes:
        fitted_tokens, measured_tokens: the two halves, drawn at random.
        independent: upper bound of codes of the measured half, by firing rates of the fitted one.
        tree: the same, each latent given one other (the tree of most mutual information).
        blocks: the same, groups of up to eight latents that depend on each other most.
        seen: lower bound, the entropy of the different codes of all tokens.
        most_seen: what seen would be if no two tokens had the same code.
        dependent_pairs: pairs of latents whose dependence is beyond chance.
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
    """Codes of a stream of text in memory, a bit each.

    Args:
        latents: width of the code.
    """

    def __init__(self, latents: int) -> None:
        self._latents = latents
        self._packed: list[Tensor] = []
        self._documents: list[Tensor] = []

    def add(self, active: Tensor, documents: Tensor) -> None:
        """Keep a batch.

        Args:
            active: bool [tokens, latents], on the CPU.
            documents: int64 [tokens], of each the number of its document.
        """
        self._packed.append(pack(active))
        self._documents.append(documents)

    def entropy(self) -> CodeEntropy:
        """Bounds on the entropy of these codes.

        Raises:
            ValueError: they are of fewer than two tokens.
        """
        packed, documents = torch.cat(self._packed), torch.cat(self._documents)
        if len(packed) < 2:
            raise ValueError(f"tokens={len(packed)}: give at least two, to fit to and measure on.")
        # At random, for both halves to be of all documents: between documents firing rates differ,
        # and what is bounded is the entropy of the whole text's codes.
        order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(0))
        fitted = order < len(packed) // 2
        models = _fit_models(packed[fitted], self._latents)
        bounds = self._measure(models, packed[~fitted], documents[~fitted])
        return CodeEntropy(
            int(fitted.sum()),
            int((~fitted).sum()),
            *bounds,
            seen=_entropy_of_rows(packed),
            most_seen=math.log2(len(packed)),
            dependent_pairs=models.dependent_pairs,
        )

    def _measure(self, models: "_Models", packed: Tensor, documents: Tensor) -> list[Estimate]:
        numbers, row = documents.unique(return_inverse=True)
        weights = document_weights(numbers.tolist())
        rows = torch.zeros(len(numbers), 4, dtype=torch.float64)
        for place in torch.arange(len(packed)).split(TOKENS_AT_ONCE):
            bits = models.bits(unpack(packed[place], self._latents, torch.bool))
            values = torch.cat([torch.ones(len(place), 1, dtype=torch.float64), bits], dim=1)
            rows.index_add_(0, row[place], values)
        sums = WeightedSums(4)
        sums.add(rows, weights)
        return [sums.estimate(lambda s, of=of: s[:, of] / s[:, 0]) for of in (1, 2, 3)]


@dataclass(frozen=True)
class _Models:
    """Bits that codes take, by three models of them.

    A column of zeros past the last latent stands for what a latent or a block lacks.

    Attributes:
        alone: float64 [2, latents], bits of each latent silent and active.
        parents: int64 [latents], of each the latent it is given.
        given: float64 [4, latents], bits by 2 x the parent's code + its own.
        members: int64 [blocks, LATENTS_A_BLOCK].
        together: float64 [blocks, 2^LATENTS_A_BLOCK], bits by the packed code of a block.
        dependent_pairs: how many there are.
    """

    alone: Tensor
    parents: Tensor
    given: Tensor
    members: Tensor
    together: Tensor
    dependent_pairs: int

    def bits(self, active: Tensor) -> Tensor:
        """float64 [tokens, 3], of codes, bool [tokens, latents]."""
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
    counted = _pair_counts(packed, latents, paired)
    pairs = dependent_pairs(counted, tokens)
    tree = strongest_tree(pairs, len(paired)).numbered(paired)
    parents = parents_of(tree, latents)
    both = _fired_together(counted, paired, parents)
    given = _conditional_bits(counts, F.pad(counts, (0, 1))[parents], both, tokens)

    members = blocks_of(tree, latents, LATENTS_A_BLOCK)
    together = _block_bits(packed, latents, members, rates)
    return _Models(alone, parents, given, members, together, len(pairs.information))


def _pair_counts(packed: Tensor, latents: int, paired: Tensor) -> Tensor:
    """int32 [paired, paired], upper triangle: on how many tokens two latents fired together."""
    counts = torch.zeros(len(paired), len(paired), dtype=torch.int32)
    for part in packed.split(TOKENS_AT_ONCE):
        active = unpack(part, latents, torch.bool)[:, paired]
        whole_matrix(active).add_pair_counts(counts)
    return counts


def _fired_together(counted: Tensor, paired: Tensor, parents: Tensor) -> Tensor:
    """float64 [latents]: of each the tokens on which it fired with its parent; 0 without one."""
    latents = len(parents)
    place = torch.full((latents + 1,), -1)
    place[paired] = torch.arange(len(paired))
    has_one = parents < latents
    ends = torch.stack([place[:latents][has_one], place[parents[has_one]]])
    both = torch.zeros(latents, dtype=torch.float64)
    both[has_one] = counted[ends.amin(0), ends.amax(0)].double()
    return both


def _conditional_bits(counts: Tensor, parents: Tensor, both: Tensor, tokens: int) -> Tensor:
    """float64 [4, latents]: bits of a code given its parent's, from counts of tokens."""
    alone, neither_parent = counts - both, tokens - parents
    rates = (
        (alone + HALF) / (neither_parent + 2 * HALF),
        (both + HALF) / (parents + 2 * HALF),
    )
    return torch.stack([-each.log2() for rate in rates for each in (1 - rate, rate)])


def _block_codes(padded: Tensor, members: Tensor) -> Tensor:
    """int64 [tokens, blocks], the codes of each block as one number."""
    return pack(padded[:, members])[..., 0].long()


def _block_bits(packed: Tensor, latents: int, members: Tensor, rates: Tensor) -> Tensor:
    """float64 [blocks, 2^LATENTS_A_BLOCK]: bits of each code of a block."""
    states = 2**LATENTS_A_BLOCK
    seen = torch.zeros(len(members), states, dtype=torch.float64)
    block = torch.arange(len(members))
    for part in packed.split(TOKENS_AT_ONCE):
        codes = _block_codes(F.pad(unpack(part, latents, torch.bool), (0, 1)), members)
        seen += torch.bincount((block * states + codes).flatten(), minlength=seen.numel()).view(
            seen.shape
        )
    each = unpack(torch.arange(states, dtype=torch.uint8)[:, None], LATENTS_A_BLOCK, torch.bool)
    # A latent that a block lacks is never active.
    of_members = F.pad(rates, (0, 1))[members][:, None]
    independent = torch.where(each, of_members, 1 - of_members).prod(2)
    return -((seen + BLOCK_PRIOR * independent) / (len(packed) + BLOCK_PRIOR)).log2()


def _entropy_of_rows(packed: Tensor) -> float:
    """Entropy of which row a token has, in bits."""
    _, counts = np.unique(packed.numpy(), axis=0, return_counts=True)
    shares = torch.from_numpy(counts / counts.sum())
    return -(shares * shares.log2()).sum().item()
