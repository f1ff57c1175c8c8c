"""The page of `sae-binary rules`: its tables and plots."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_binary_ext.commands.rules.associations import Associations
from sae_binary_ext.commands.rules.config import RulesConfig
from sae_binary_ext.commands.rules.rule_scores import PROBED, RuleScore
from sae_binary_ext.measure.documents import Estimate, estimate_of, resampled
from sae_binary_ext.report import Analysis, Column, Table, analysis_of, table_of
from sae_binary_ext.report.plots import curves
from sae_binary_ext.report.tables import with_meanings

# A rule comes near the probe if its AUC is at least this share of the probe's.
NEAR = 0.97
# Number of implications of each coder that the page lists. The JSON file has all.
LISTED = 10
ESTIMATES = ("precision", "coverage", "auc")


@dataclass(frozen=True)
class RuleOfCoder:
    """A rule, with the coder's name as tables show it."""

    coder: str
    score: RuleScore

    @property
    def ratio(self) -> float:
        """AUC of the rule over AUC of the probe."""
        return self.score.auc[0] / self.score.probe_auc


@dataclass(frozen=True)
class FoundRules:
    """Names of all coders, and what was found; lists are empty if they were not asked for."""

    coders: list[str]
    rules: list[RuleOfCoder]
    associations: list[Associations]


@dataclass(frozen=True)
class _RulesOfCoder:
    """All rules of one coder."""

    coder: str
    rules: list[RuleOfCoder]

    def mean(self, figure: Callable[[RuleOfCoder], float]) -> Estimate:
        """Mean over labels, with an interval from a bootstrap over labels."""
        values = torch.tensor([figure(each) for each in self.rules], dtype=torch.float64)
        return estimate_of(values[resampled(len(values))].mean(1))


def _area(label: str, figure: Callable[[RuleOfCoder], Any]) -> Column[RuleOfCoder]:
    return Column(label, form=".3f", value=figure)


AREAS: dict[str, Callable[[RuleOfCoder], float]] = {
    "rule": lambda each: each.score.auc[0],
    "1 latent": lambda each: each.score.single_auc,
    "logistic": lambda each: each.score.logistic_auc,
    "tree": lambda each: each.score.tree_auc,
    f"{PROBED} latents": lambda each: each.score.probe_auc,
}
RULES: tuple[Column[RuleOfCoder], ...] = (
    Column("coder", value=lambda each: each.coder),
    Column("label", value=lambda each: each.score.label),
    Column("rule", value=lambda each: each.score.rule),
    Column("labelled", form=".1%", value=lambda each: each.score.labelled / each.score.rows),
    Column("precision", form=".1%", value=lambda each: each.score.estimate("precision")),
    Column("coverage", form=".1%", value=lambda each: each.score.estimate("coverage")),
    Column("AUC", form=".3f", value=lambda each: each.score.estimate("auc")),
    *(_area(label, figure) for label, figure in list(AREAS.items())[1:]),
    Column("rule / probe", form=".3f", value=lambda each: each.ratio),
)


def _mean(label: str, figure: Callable[[RuleOfCoder], float]) -> Column[_RulesOfCoder]:
    return Column(label, form=".3f", value=lambda each: each.mean(figure))


MEANS: tuple[Column[_RulesOfCoder], ...] = (
    Column("coder", value=lambda each: each.coder),
    Column("labels", form="d", value=lambda each: len(each.rules)),
    *(_mean("AUC" if label == "rule" else label, figure) for label, figure in AREAS.items()),
    _mean("rule / probe", lambda each: each.ratio),
    Column("near", form="d", value=lambda each: sum(r.ratio >= NEAR for r in each.rules)),
)
ASSOCIATED: tuple[Column[Associations], ...] = (
    Column("coder", value=lambda each: each.coder),
    Column("tokens", form="d", value=lambda each: each.tokens),
    Column("counted", form="d", value=lambda each: each.counted),
    Column("implying", form="d", value=lambda each: each.implying),
    Column("implications", form="d", value=lambda each: len(each.implications)),
    Column("links", form="d", value=lambda each: len(each.links)),
    Column("depth", form="d", value=lambda each: each.depth),
    Column("duplicates", form="d", value=lambda each: len(each.duplicates)),
    Column("in duplicates", form="d", value=lambda each: each.in_duplicates),
)
IMPLIED: tuple[Column[Any], ...] = (
    Column("coder", value=lambda pair: pair[0]),
    Column("implication", value=lambda pair: f"{pair[1].latent} ⊂ {pair[1].implied}"),
    Column("firings", form="d", value=lambda pair: pair[1].fired),
    Column("share", form=".1%", value=lambda pair: pair[1].both / pair[1].fired),
    Column("lift", form=".1f", value=lambda pair: pair[1].lift),
)
COLUMNS: tuple[Column[Any], ...] = (*RULES, *MEANS, *ASSOCIATED, *IMPLIED)
TEXTS = tomllib.loads(Path(__file__).with_name("page.toml").read_text(encoding="utf-8"))


def _table(caption: str, columns: Sequence[Column[Any]], things: Sequence[Any]) -> Table:
    return table_of(TEXTS[caption], with_meanings(columns, TEXTS["columns"]), things)


def rules_page(found: FoundRules, config: RulesConfig) -> Analysis:
    """Make the page: its tables, plot and remarks."""
    of_coders = [
        _RulesOfCoder(coder, own)
        for coder in found.coders
        if (own := [each for each in found.rules if each.coder == coder])
    ]
    tables: list[Table] = []
    if found.rules:
        tables += [_table("means", MEANS, of_coders), _table("caption", RULES, found.rules)]
    if found.associations:
        listed = [
            (each.coder, implication)
            for each in found.associations
            for implication in each.implications[:LISTED]
        ]
        tables += [_table("associations", ASSOCIATED, found.associations)]
        tables += [_table("implications", IMPLIED, listed)] if listed else []
    plots = {
        "AUC of the rule, by AUC of the probe": curves(
            {
                each.coder: [(r.score.probe_auc, r.score.auc[0], r.score.label) for r in each.rules]
                for each in of_coders
            },
            f"AUC of the probe of {PROBED} latents",
            "AUC of the rule",
            mode="markers",
        )
    }
    results: dict[str, Any] = {
        "rules": [_described(each) for each in found.rules],
        "associations": [asdict(each) for each in found.associations],
    }
    figures = plots if found.rules else {}
    analysis = analysis_of(__file__, RULES, found.rules, figures, results)
    return replace(analysis, tables=tables)


def _described(each: RuleOfCoder) -> dict[str, Any]:
    """A rule for the JSON file."""
    estimates = {figure: each.score.estimate(figure) for figure in ESTIMATES}
    return {"coder": each.coder} | vars(each.score) | estimates
