"""Measures rules on the other half of the rows, beside other ways to tell the label."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from sae_binary_ext.commands.rules.rule_codes import LabelledRows, PackedCodes
from sae_binary_ext.commands.rules.rule_search import SEED, Rule, best_latents, find_rule
from sae_binary_ext.measure.documents import Estimate, WeightedSums, document_weights, estimate_of

# Number of latents of the probe that rules are compared with.
PROBED = 16
HOLDS, HITS, LABELLED = range(3)


@dataclass(frozen=True)
class RuleScore:
    """A rule for a label, measured on the rows that it was not fitted on.

    Attributes:
        of: fingerprint of the coder for tasks, its name for other labels.
        clauses: for each clause its text, and its rows and labelled rows in both halves.
        fitted_rows, fitted_labelled: sizes of the half that the rule was fitted on.
        rows, labelled: sizes of the measured half.
        holds, hits: rows for which the rule holds, and how many of these have the label.
        precision, coverage, auc: value and both ends of the interval over documents or texts.
        single: the best single latent, as a clause; single_auc is its AUC.
        logistic_auc: AUC of a logistic regression on the rule's latents.
        tree_auc: AUC of a decision tree with one leaf more than the rule has literals.
        probe_auc: AUC of the probe of PROBED latents.
    """

    of: str
    label: str
    rule: str
    clauses: list[dict[str, Any]]
    fitted_rows: int
    fitted_labelled: int
    rows: int
    labelled: int
    holds: int
    hits: int
    precision: list[float]
    coverage: list[float]
    auc: list[float]
    single: str
    single_auc: float
    logistic_auc: float
    tree_auc: float
    probe_auc: float

    def estimate(self, figure: str) -> Estimate:
        """One of precision, coverage and auc, with its interval."""
        return Estimate(*getattr(self, figure))


@dataclass(frozen=True)
class _Half:
    codes: PackedCodes
    labels: Tensor

    def counts(self, clause_holds: Tensor) -> dict[str, int]:
        return {
            "rows": int(clause_holds.sum()),
            "labelled": int((clause_holds & self.labels).sum()),
        }


def score_rule(
    of: str,
    label: str,
    codes: PackedCodes,
    rows: LabelledRows,
    limits: tuple[int, int],
    probe: Callable[[], float] | None = None,
) -> RuleScore:
    """Fit a rule on one half and measure it on the other.

    Args:
        codes: codes of the rows.
        limits: most clauses, and most literals in a clause.
        probe: gives the AUC of a probe of PROBED latents; if None, a logistic regression with an
            L1 penalty on the latents whose rates differ most between labels.
    """
    fitted = _Half(codes.rows(rows.fitting), rows.labels[rows.fitting])
    measured = _Half(codes.rows(~rows.fitting), rows.labels[~rows.fitting])
    rule = find_rule(fitted.codes, fitted.labels, *limits)
    clauses: list[dict[str, Any]] = []
    for clause in rule.clauses:
        halves = {"fitted": fitted, "measured": measured}
        own = {name: half.counts(clause.holds(half.codes)) for name, half in halves.items()}
        clauses.append({"clause": str(clause)} | own)
    holds = measured.counts(rule.holds(measured.codes))
    precision, coverage, auc = _figures(rule, measured, rows.groups[~rows.fitting])
    latent, differs = _most_different(fitted, 1)
    single = f"{'' if differs[0] > 0 else '!'}{int(latent[0])}"
    return RuleScore(
        of,
        label,
        str(rule),
        clauses,
        len(fitted.codes),
        int(fitted.labels.sum()),
        len(measured.codes),
        int(measured.labels.sum()),
        holds["rows"],
        holds["labelled"],
        precision,
        coverage,
        auc,
        single,
        _area(measured, measured.codes.active(latent)[:, 0] ^ bool(differs[0] <= 0)),
        _told(LogisticRegression(), fitted, measured, torch.tensor(rule.latents)),
        _tree_area(rule, fitted, measured),
        _probe_area(fitted, measured) if probe is None else probe(),
    )


def _figures(rule: Rule, half: _Half, groups: Tensor) -> tuple[list[float], ...]:
    """Precision, coverage and AUC of a rule, each with its interval over documents."""
    scores = rule.scores(half.codes)
    holds, labels = rule.holds(half.codes), half.labels
    # Rows of equal score are ties. Levels are numbered from the lowest score.
    values, level = scores.unique(return_inverse=True)
    at_level = torch.nn.functional.one_hot(level, len(values))
    columns = torch.cat(
        [
            torch.stack([holds, holds & labels, labels], dim=1),
            at_level * labels[:, None],
            at_level * ~labels[:, None],
        ],
        dim=1,
    )
    numbers, own = groups.unique(return_inverse=True)
    by_document = torch.zeros(len(numbers), columns.shape[1], dtype=torch.float64)
    by_document.index_add_(0, own, columns.double())
    sums = WeightedSums(columns.shape[1])
    sums.add(by_document, document_weights(numbers.tolist()))
    found = sums.sums
    hits, misses = found[:, 3:].chunk(2, dim=1)
    figures = (
        found[:, HITS] / found[:, HOLDS],
        found[:, HITS] / found[:, LABELLED],
        area_of_levels(hits, misses),
    )
    estimates = map(estimate_of, figures)
    return tuple([each.value, each.low, each.high] for each in estimates)


def area_of_levels(hits: Tensor, misses: Tensor) -> Tensor:
    """Area under the ROC curve, float64 [...], if rows have one of a few scores.

    hits and misses, float64 [..., levels], count rows with and without the label at each score, the
    lowest score first. The area is the share of pairs (one of each) in the right order; ties count
    half. NaN if there are no pairs.
    """
    below = misses.cumsum(-1) - misses
    return (hits * (below + misses / 2)).sum(-1) / (hits.sum(-1) * misses.sum(-1))


def _most_different(half: _Half, number: int) -> tuple[Tensor, Tensor]:
    """The latents, int64, whose rates differ most between labels, and the differences."""
    marks = torch.stack([half.labels, ~half.labels], dim=1)
    rates = half.codes.counts(marks) / marks.sum(0)
    differences = rates[:, 0] - rates[:, 1]
    best = differences.abs().argsort(descending=True, stable=True)[:number]
    return best, differences[best]


def _area(half: _Half, scores: Tensor) -> float:
    return float(roc_auc_score(half.labels.numpy(), scores.numpy()))


def _told(model: Any, fitted: _Half, measured: _Half, latents: Tensor) -> float:
    """AUC of a model of scikit-learn that reads some latents; 0.5 if there are none."""
    if not len(latents):
        return 0.5
    model.fit(fitted.codes.active(latents).numpy(), fitted.labels.numpy())
    shares = model.predict_proba(measured.codes.active(latents).numpy())
    return _area(measured, torch.from_numpy(shares[:, 1]))


def _tree_area(rule: Rule, fitted: _Half, measured: _Half) -> float:
    """AUC of a decision tree that may ask as many questions as the rule has literals."""
    tree = DecisionTreeClassifier(max_leaf_nodes=max(rule.literals, 1) + 1, random_state=SEED)
    return _told(tree, fitted, measured, best_latents(fitted.codes, fitted.labels))


def _probe_area(fitted: _Half, measured: _Half) -> float:
    latents, _ = _most_different(fitted, PROBED)
    model = LogisticRegression(l1_ratio=1.0, solver="liblinear", random_state=SEED)
    return _told(model, fitted, measured, latents)
