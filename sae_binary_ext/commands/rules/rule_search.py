"""Searches a rule for a label: an OR of clauses, each an AND of latents and negated latents.

The paths of a random forest's trees propose clauses. Each clause is counted exactly, on bitmaps of
one bit a row. A rule sorts rows into groups: a row belongs to the most precise clause that
holds for it, or to no clause. The criterion of a rule is the log likelihood of the labels in nats,
where each group has its own rate, less ln(rows) / 2 for each literal (Schwarz, 1978).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import xlogy
from torch import Tensor

from sae_binary_ext.commands.rules.rule_codes import PackedCodes

try:
    from sklearn.ensemble import RandomForestClassifier
except ModuleNotFoundError as error:
    raise ImportError(
        "needs the package scikit-learn, whose trees propose clauses: "
        "pip install 'sae_binary_ext[rules]'."
    ) from error

# Number of latents that clauses are made of: those that tell most of the label, one by one.
CANDIDATES = 64
TREES, SEED = 100, 0
# Most times that all clauses of a rule are improved, one after the other.
ROUNDS = 5

Bits = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.float64]
# A clause in the search: sorted places of literals in _Bitmaps.
Literals = tuple[int, ...]


@dataclass(frozen=True)
class Clause:
    """An AND of latents that fire and of latents that are silent."""

    fire: tuple[int, ...]
    silent: tuple[int, ...]

    def __str__(self) -> str:
        return " & ".join([*map(str, self.fire), *(f"!{latent}" for latent in self.silent)])

    @property
    def latents(self) -> tuple[int, ...]:
        """The latents that the clause reads."""
        return (*self.fire, *self.silent)

    def holds(self, codes: PackedCodes) -> Tensor:
        """bool [rows], true where the clause holds."""
        fire, silent = (torch.tensor(each, dtype=torch.long) for each in (self.fire, self.silent))
        return codes.active(fire).all(1) & ~codes.active(silent).any(1)


@dataclass(frozen=True)
class Rule:
    """An OR of clauses, the most precise first, with precisions on the rows it was fitted on.

    base_rate is the share of these rows that have the label.
    """

    clauses: tuple[Clause, ...]
    precisions: tuple[float, ...]
    base_rate: float

    def __str__(self) -> str:
        return " | ".join(map(str, self.clauses)) or "none"

    @property
    def latents(self) -> list[int]:
        """The latents that the rule reads, each once, in rising order."""
        return sorted({latent for clause in self.clauses for latent in clause.latents})

    @property
    def literals(self) -> int:
        """Number of literals of all clauses."""
        return sum(len(clause.latents) for clause in self.clauses)

    def holds(self, codes: PackedCodes) -> Tensor:
        """bool [rows], true where any clause holds."""
        return self.scores(codes) > self.base_rate

    def scores(self, codes: PackedCodes) -> Tensor:
        """float64 [rows]: precision of the best clause that holds, or else the base rate."""
        scores = torch.full((len(codes),), self.base_rate, dtype=torch.float64)
        for clause, precision in zip(self.clauses, self.precisions, strict=True):
            scores = torch.where(clause.holds(codes), scores.clamp_min(precision), scores)
        return scores


def find_rule(codes: PackedCodes, labels: Tensor, clauses: int, literals: int) -> Rule:
    """Find a rule for labels, bool [rows]. At least one row has the label, and one has not.

    Args:
        codes: codes of the rows to fit on.
        clauses, literals: most clauses in the rule, and most literals in a clause.
    """
    chosen = best_latents(codes, labels)
    bitmaps = _Bitmaps(codes.active(chosen).numpy(), labels.numpy(), literals)
    rule, proposals = list[Literals](), bitmaps.single()
    for _ in range(clauses):
        proposals |= bitmaps.paths(rule)
        found = bitmaps.best(rule, sorted(proposals))
        # The first clause is taken for its rank alone, so that a weak label has a rule too.
        if found is None or (rule and found[1] <= bitmaps.criterion(rule)):
            break
        rule = bitmaps.improved([*rule, found[0]])
    return bitmaps.rule(rule, chosen.tolist())


def best_latents(codes: PackedCodes, labels: Tensor) -> Tensor:
    """The CANDIDATES latents of most mutual information with labels, bool [rows]: int64, rising."""
    active = codes.counts(torch.stack([torch.ones_like(labels), labels], dim=1)).numpy()
    every = np.array([len(labels), int(labels.sum())], dtype=np.float64)
    gain = _likelihood(active) + _likelihood(every - active) - _likelihood(every)
    best = np.argsort(-gain, kind="stable")[:CANDIDATES]
    return torch.from_numpy(best[gain[best] > 0]).sort().values


def _likelihood(counts: Counts) -> Counts:
    """Log likelihood of labels in nats, of groups with counts [..., (rows, labelled rows)]."""
    rows, hits = counts[..., 0], counts[..., 1]
    return xlogy(hits, hits) + xlogy(rows - hits, rows - hits) - xlogy(rows, rows)


class _Bitmaps:
    """Rows as bits, for literals of candidates.

    Places 0 to n - 1 are the candidates, places n to 2 n - 1 their negations, and 2 n all rows.
    """

    def __init__(
        self, active: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_], literals: int
    ) -> None:
        self._inputs, self._answers, self._literals = active.astype(np.float32), labels, literals
        self._candidates = active.shape[1]
        every = np.ones((len(labels), 1), dtype=np.bool_)
        self._bits = _packed(np.concatenate([active, ~active, every], axis=1))
        self._labels = _packed(labels[:, None])[0]
        self._base_rate = labels.mean()
        self._price = np.log(len(labels)) / 2

    def single(self) -> set[Literals]:
        """Clauses of one literal."""
        return {(place,) for place in range(2 * self._candidates)}

    def paths(self, rule: Sequence[Literals]) -> set[Literals]:
        """Clauses of all nodes of a forest, fitted on the rows for which the rule does not hold."""
        left = ~_unpacked(np.bitwise_or.reduce(self._holding(rule), axis=0), len(self._answers))
        if not left.any() or not self._candidates:
            return set()
        forest: Any = RandomForestClassifier(TREES, max_depth=self._literals, random_state=SEED)
        forest.fit(self._inputs[left], self._answers[left])
        return {path for tree in forest.estimators_ for path in self._paths_of(tree.tree_)}

    def _paths_of(self, tree: Any) -> Iterable[Literals]:
        paths: dict[int, Literals] = {0: ()}
        # A node's number is lower than those of its children.
        for node in range(tree.node_count):
            if tree.children_left[node] >= 0:
                place = int(tree.feature[node])
                paths[tree.children_left[node]] = (*paths[node], place + self._candidates)
                paths[tree.children_right[node]] = (*paths[node], place)
        return (tuple(sorted(path)) for path in paths.values() if path)

    def criterion(self, rule: Sequence[Literals]) -> float:
        """The rule's criterion, in nats."""
        own = sum(float(_likelihood(self._counts(bits))) for bits, _ in self._groups(rule))
        return own - self._price * sum(map(len, rule))

    def best(
        self, rule: Sequence[Literals], proposals: Sequence[Literals]
    ) -> tuple[Literals, float] | None:
        """The clause that most raises the criterion if added, and the criterion; None if no clause
        is more precise than the base rate."""
        if not proposals:
            return None
        holding = self._holding(proposals)
        precisions = _rates(self._counts(holding))
        gathered = np.zeros((len(proposals), 2))
        found = np.zeros(len(proposals))
        for bits, precision in self._groups(rule):
            # A new clause takes the rows of less precise clauses.
            taken = self._counts(holding & bits) * (precisions > precision)[:, None]
            found += _likelihood(self._counts(bits) - taken)
            gathered += taken
        lengths = np.array([len(each) for each in [*proposals, *rule]])
        price = self._price * (lengths[: len(proposals)] + lengths[len(proposals) :].sum())
        found += _likelihood(gathered) - price
        found[precisions <= self._base_rate] = -np.inf
        place = int(found.argmax())
        return (proposals[place], float(found[place])) if np.isfinite(found[place]) else None

    def improved(self, rule: list[Literals]) -> list[Literals]:
        """Drop, add or exchange one literal at a time, or drop a clause, while it helps."""
        for _ in range(ROUNDS):
            before = list(rule)
            for clause in before:
                others = [each for each in rule if each != clause]
                found = self.best(others, [clause, *self._near(clause)])
                if others and (found is None or self.criterion(others) >= found[1]):
                    rule = others
                elif found is not None:
                    rule = [*others, found[0]]
            if sorted(rule) == sorted(before):
                break
        return rule

    def _near(self, clause: Literals) -> list[Literals]:
        """Clauses that differ from a clause by one literal: dropped, exchanged or added."""
        shorter = [clause[:place] + clause[place + 1 :] for place in range(len(clause))]
        longer = {
            tuple(sorted((*start, place)))
            for start in [*shorter, clause]
            for place in range(2 * self._candidates)
            if len(start) < self._literals
            and place % self._candidates not in {own % self._candidates for own in start}
        }
        return [*(each for each in shorter if each), *sorted(longer - {clause})]

    def rule(self, clauses: Sequence[Literals], latents: list[int]) -> Rule:
        """The rule for users; `latents` are the candidates' numbers."""
        precisions = _rates(self._counts(self._holding(clauses))).tolist()
        number = self._candidates

        def named(clause: Literals) -> Clause:
            fire = tuple(latents[place] for place in clause if place < number)
            return Clause(
                fire, tuple(latents[place - number] for place in clause if place >= number)
            )

        pairs = sorted(zip(precisions, map(named, clauses), strict=True), key=lambda p: -p[0])
        return Rule(
            tuple(clause for _, clause in pairs),
            tuple(precision for precision, _ in pairs),
            float(self._base_rate),
        )

    def _groups(self, rule: Sequence[Literals]) -> list[tuple[Bits, float]]:
        """Rows of each clause that are in no more precise clause, with its precision; then the
        rows of no clause."""
        holding = self._holding(rule)
        precisions = _rates(self._counts(holding))
        left = self._bits[-1]
        groups: list[tuple[Bits, float]] = []
        for place in np.argsort(-precisions, kind="stable"):
            groups.append((holding[place] & left, float(precisions[place])))
            left = left & ~holding[place]
        return [*groups, (left, -np.inf)]

    def _holding(self, clauses: Sequence[Literals]) -> Bits:
        """uint64 [clauses, words], the rows for which each clause holds."""
        places = np.full((len(clauses), self._literals), 2 * self._candidates)
        for row, clause in zip(places, clauses, strict=True):
            row[: len(clause)] = clause
        return np.bitwise_and.reduce(self._bits[places], axis=1)

    def _counts(self, bits: Bits) -> Counts:
        """float64 [..., 2]: number of rows, and of labelled rows, of bitmaps [..., words]."""
        both = np.stack([bits, bits & self._labels], axis=-2)
        return np.bitwise_count(both).sum(-1, dtype=np.int64).astype(np.float64)


def _packed(rows: npt.NDArray[np.bool_]) -> Bits:
    """uint64 [columns, words] from bool [rows, columns]. Bits past the last row are 0."""
    padded = np.pad(rows, ((0, -len(rows) % 64), (0, 0)))
    return np.packbits(np.ascontiguousarray(padded.T), axis=1).view(np.uint64)


def _unpacked(bits: Bits, rows: int) -> npt.NDArray[np.bool_]:
    """bool [rows] from words."""
    return np.unpackbits(bits.view(np.uint8), count=rows).astype(np.bool_)


def _rates(counts: Counts) -> Counts:
    """Share of labelled rows, [...], from counts [..., 2]; 0 without rows."""
    return counts[..., 1] / np.maximum(counts[..., 0], 1)
