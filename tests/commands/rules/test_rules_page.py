"""The page has a row for each rule, means over labels, and associations."""

import math
from typing import Any

import pytest

from sae_binary_ext.commands.rules import RulesConfig
from sae_binary_ext.commands.rules.associations import Associations, Duplicates, Implication
from sae_binary_ext.commands.rules.rule_scores import RuleScore
from sae_binary_ext.commands.rules.rules_page import LISTED, FoundRules, RuleOfCoder, rules_page

NOT_KNOWN = float("nan")


def rule(coder: str, label: str, auc: float) -> RuleOfCoder:
    estimates: list[Any] = [[0.9, 0.8, 1.0], [0.5, NOT_KNOWN, NOT_KNOWN], [auc, auc - 0.1, 1.0]]
    areas = (0.6, 0.7, 0.65, 0.8)
    return RuleOfCoder(
        coder, RuleScore("of", label, "3 | !4", [], 9, 3, 20, 5, 4, 3, *estimates, "3", *areas)
    )


IMPLICATIONS = [Implication(latent, 1, 99, 100, 400, 2.5) for latent in range(2, 20)]
ASSOCIATIONS = Associations(
    "a", 1000, 30, IMPLICATIONS, [Duplicates(4, 5, 90, 0.96)], 2, [([4, 5], [1])], [1, 2]
)
RULES = [rule("a", "x", 0.78), rule("a", "y", 0.5), rule("b", "x", 0.9)]


def test_rules_have_rows_and_means_over_labels():
    analysis = rules_page(FoundRules(["a", "b", "c"], RULES, []), RulesConfig())
    means, rows = analysis.tables
    assert [row[:2] for row in means.rows] == [["a", 2], ["b", 1]]
    heads = [column.label for column in means.columns]
    first: Any = dict(zip(heads, means.rows[0], strict=True))
    assert first["AUC"].value == pytest.approx(0.64)
    assert first["rule / probe"].value == pytest.approx(0.8)
    assert first["near"] == 1  # 0.78 is 0.975 of the probe's 0.8, and 0.5 is not near
    assert len(rows.rows) == 3
    assert rows.rows[0][:4] == ["a", "x", "3 | !4", 0.25]
    assert all(column.meaning for column in [*means.columns[1:], *rows.columns[3:]])
    assert len(analysis.figures) == 1


def test_the_file_has_counts_and_intervals():
    (found, *_) = rules_page(FoundRules(["a", "b"], RULES, []), RulesConfig()).results["rules"]
    assert (found["holds"], found["hits"], found["labelled"]) == (4, 3, 5)
    assert (found["precision"].value, found["precision"].low) == (0.9, 0.8)
    assert math.isnan(found["coverage"].low)


def test_associations_alone_have_tables_and_no_plot():
    analysis = rules_page(FoundRules(["a"], [], [ASSOCIATIONS]), RulesConfig())
    counts, implications = analysis.tables
    assert counts.rows == [["a", 1000, 30, 18, 18, 1, 1, 1, 2]]
    assert len(implications.rows) == LISTED
    assert implications.rows[0] == ["a", "2 ⊂ 1", 100, 0.99, 2.5]
    assert analysis.figures == {}
    assert len(analysis.results["associations"][0]["implications"]) == 18
