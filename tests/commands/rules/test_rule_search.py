"""A planted rule is found, and its figures are those of a recount."""

import math

import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands.rules.rule_codes import LabelledRows, PackedCodes, half_of_documents
from sae_binary_ext.commands.rules.rule_scores import RuleScore, area_of_levels, score_rule
from sae_binary_ext.commands.rules.rule_search import (
    Clause,
    Rule,
    _Bitmaps,
    best_latents,
    find_rule,
)

ROWS, LATENTS, DOCUMENTS = 6000, 90, 40
A, B, C, D = 3, 17, 44, 71


@pytest.fixture(scope="module")
def active() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rates = torch.full((LATENTS,), 0.1)
    rates[[A, B, C]] = 0.5
    return torch.rand(ROWS, LATENTS, generator=generator) < rates


@pytest.fixture(scope="module")
def planted(active: Tensor) -> Tensor:
    return (active[:, A] & active[:, B] & ~active[:, C]) | active[:, D]


@pytest.fixture(scope="module")
def documents() -> Tensor:
    return torch.arange(ROWS) // (ROWS // DOCUMENTS)


def score(active: Tensor, labels: Tensor, documents: Tensor, clauses: int = 3) -> RuleScore:
    rows = LabelledRows(labels, documents, half_of_documents(documents))
    return score_rule("coder", "label", PackedCodes.of(active), rows, (clauses, 3))


def test_a_planted_rule_is_found_exactly(active: Tensor, planted: Tensor, documents: Tensor):
    found = score(active, planted, documents)
    assert set(found.rule.split(" | ")) == {f"{A} & {B} & !{C}", f"{D}"}
    assert found.precision[0] == found.coverage[0] == found.auc[0] == 1
    assert found.holds == found.hits == found.labelled
    assert found.single == str(D)
    assert found.single_auc < 0.9
    # The rule's four latents tell the label to a linear model too.
    assert found.logistic_auc > 0.99


def test_a_rule_has_no_more_clauses_than_asked_for(
    active: Tensor, planted: Tensor, documents: Tensor
):
    found = score(active, planted, documents, clauses=1)
    assert found.rule in (f"{A} & {B} & !{C}", f"{D}")
    assert found.precision[0] == 1
    assert found.coverage[0] < 1


def test_noise_gets_no_further_literal(active: Tensor, planted: Tensor):
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(ROWS, generator=generator) < 0.1
    found = find_rule(PackedCodes.of(active), planted ^ wrong, 3, 3)
    assert set(str(found).split(" | ")) == {f"{A} & {B} & !{C}", f"{D}"}


def test_the_criterion_is_that_of_rows_in_the_group_of_their_most_precise_clause(
    active: Tensor, planted: Tensor
):
    wrong = torch.rand(ROWS, generator=torch.Generator().manual_seed(4)) < 0.3
    labels, few = planted ^ wrong, [A, B, C, D, 0, 1]
    bitmaps = _Bitmaps(active[:, few].numpy(), labels.numpy(), 3)
    literals = torch.cat([active[:, few], ~active[:, few]], dim=1)
    rule: list[tuple[int, ...]] = [(0, 1), (3,)]
    for clause in [(0,), (1, 8), (0, 1, 8), (2, 3), (9, 10), (4,)]:
        clauses = [*rule, clause]
        # Each row has the precision of the best clause that holds, and rows of one precision share
        # a rate.
        scores = torch.zeros(ROWS, dtype=torch.float64)
        for each in clauses:
            holds = literals[:, list(each)].all(1)
            precision = labels[holds].double().mean()
            scores = torch.where(holds, scores.clamp_min(precision), scores)
        found = -math.log(ROWS) / 2 * sum(map(len, clauses))
        for score_of_group in scores.unique():
            group = labels[scores == score_of_group].double()
            found -= torch.nn.functional.binary_cross_entropy(
                group.mean().expand(len(group)), group, reduction="sum"
            ).item()
        assert bitmaps.criterion(clauses) == pytest.approx(found)
        added = bitmaps.best(rule, [clause])
        precise = labels[literals[:, list(clause)].all(1)].double().mean() > labels.double().mean()
        assert (added is not None) == bool(precise)
        if added is not None:
            assert added == (clause, pytest.approx(found))


def test_trees_propose_clauses_for_rows_that_are_left(
    active: Tensor, planted: Tensor, monkeypatch: pytest.MonkeyPatch
):
    few = [A, B, C, D, 0, 1]
    bitmaps = _Bitmaps(active[:, few].numpy(), planted.numpy(), 3)
    assert {len(path) for path in bitmaps.paths([])} == {1, 2, 3}
    left = bitmaps.paths([(3,)])
    assert (0, 1, 8) in left
    # Latent D is silent on all rows that the rule leaves, so that no tree asks for it.
    assert not {3, 9} & {place for path in left for place in path}
    # Without the search among neighbours, clauses of several literals come from trees alone.
    monkeypatch.setattr(_Bitmaps, "improved", lambda self, rule: rule)
    found = find_rule(PackedCodes.of(active[:, few]), planted, 3, 3)
    assert max(len(clause.latents) for clause in found.clauses) > 1


def test_printed_figures_are_a_recount(active: Tensor, planted: Tensor, documents: Tensor):
    generator = torch.Generator().manual_seed(2)
    labels = planted ^ (torch.rand(ROWS, generator=generator) < 0.2)
    found = score(active, labels, documents)
    fitting = half_of_documents(documents)
    any_holds = torch.zeros(ROWS, dtype=torch.bool)
    for clause in found.clauses:
        holds = torch.ones(ROWS, dtype=torch.bool)
        for literal in clause["clause"].split(" & "):
            fires = active[:, int(literal.lstrip("!"))]
            holds &= ~fires if literal.startswith("!") else fires
        any_holds |= holds
        for half, own in (("fitted", fitting), ("measured", ~fitting)):
            counts = {
                "rows": int((holds & own).sum()),
                "labelled": int((holds & own & labels).sum()),
            }
            assert clause[half] == counts
    assert " | ".join(each["clause"] for each in found.clauses) == found.rule
    assert found.fitted_rows == int(fitting.sum())
    assert found.fitted_labelled == int(labels[fitting].sum())
    held, labels = any_holds[~fitting], labels[~fitting]
    assert (found.rows, found.labelled) == (len(labels), int(labels.sum()))
    assert (found.holds, found.hits) == (int(held.sum()), int((held & labels).sum()))
    assert found.precision[0] == found.hits / found.holds
    assert found.coverage[0] == found.hits / found.labelled
    for value, low, high in (found.precision, found.coverage, found.auc):
        assert low < value < high


def test_a_label_that_no_latent_tells_has_a_rule_near_chance(active: Tensor, documents: Tensor):
    labels = torch.rand(ROWS, generator=torch.Generator().manual_seed(3)) < 0.3
    found = score(active, labels, documents)
    assert found.rule != "none"
    assert found.auc[0] == pytest.approx(0.5, abs=0.05)


def test_latents_that_never_change_have_no_rule():
    labels = torch.arange(40) % 2 == 0
    codes = torch.zeros(40, 8)
    codes[:, 2] = 1
    found = score(codes, labels, torch.arange(40) // 2)
    assert (found.rule, found.holds, found.auc[0]) == ("none", 0, 0.5)
    assert found.logistic_auc == found.tree_auc == 0.5


def test_scores_are_precisions_of_the_best_clause_that_holds():
    codes = PackedCodes.of(torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]))
    rule = Rule((Clause((0,), ()), Clause((), (1,))), (0.9, 0.6), 0.5)
    assert rule.scores(codes).tolist() == [0.9, 0.9, 0.5, 0.6]
    assert rule.holds(codes).tolist() == [True, True, False, True]
    assert str(rule) == "0 | !1"


def test_the_area_is_that_of_pairs_in_order():
    # Scores 0, 1, 2. Two labelled rows have 2, one has 0. One other row has each of 1 and 0.
    hits, misses = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    # Pairs: (2, 0), (2, 1) twice are right, (0, 0) is a tie, (0, 1) is wrong.
    assert area_of_levels(hits, misses).item() == pytest.approx((4 + 0.5) / 6)
    assert area_of_levels(hits, torch.zeros(3)).isnan()


def test_candidates_are_those_of_most_mutual_information(active: Tensor):
    # One latent tells the label when it fires, another one when it is silent.
    chosen = best_latents(PackedCodes.of(active), active[:, 5] | ~active[:, A])
    assert {5, A} <= set(chosen.tolist())
    assert len(chosen) == 64
    assert chosen.tolist() == sorted(chosen.tolist())


def test_packed_codes_are_the_codes(active: Tensor):
    packed = PackedCodes.of(active.float() * 0.3)
    assert torch.equal(torch.cat(list(packed.parts())).bool(), active)
    assert torch.equal(packed.active(torch.tensor([8, 0, 89])), active[:, [8, 0, 89]])
    chosen = torch.arange(ROWS) % 3 == 0
    assert torch.equal(packed.rows(chosen).active(torch.arange(LATENTS)), active[chosen])
    marks = torch.stack([chosen, ~chosen], dim=1)
    assert torch.equal(packed.counts(marks), active.double().T @ marks.double())


def test_halves_share_no_document():
    documents = torch.tensor([4, 4, 9, 2, 9, 2, 7, 7, 4, 1])
    fitting = half_of_documents(documents)
    fitted, measured = set(documents[fitting].tolist()), set(documents[~fitting].tolist())
    assert not fitted & measured
    assert (len(fitted), len(measured)) == (2, 3)
    assert torch.equal(fitting, half_of_documents(documents))
    with pytest.raises(ValueError, match="only 1 document was read"):
        half_of_documents(torch.zeros(5, dtype=torch.long))
