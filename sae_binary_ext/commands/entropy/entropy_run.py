"""`sae-binary entropy`: the information in hidden states, read off the codes of coders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch

from sae_binary_ext.commands.entropy.config import EntropyConfig
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.code_entropy import CodeEntropy, GatheredCodes
from sae_binary_ext.measure.documents import Estimate, document_weights
from sae_binary_ext.measure.figures import (
    CoderFigures,
    RunningFigures,
    RunningVariance,
    TokenBatch,
)
from sae_binary_ext.measure.reading import open_coders, read_text, settings_of
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.report.plots import error_bars

REMARKS = (
    "Bits a token that codes have, over all tokens read. Independent: the sum over latents of "
    "the entropy of their firing rates, which is the entropy if they fire independently of one "
    "another, and more than it if they do not. Held out, tree and blocks are measured on one "
    "half of the tokens by what was fitted on the other: rates alone; each latent given one "
    "other; groups of up to eight latents that depend on each other most. All three are upper "
    "bounds, and the lowest is the best. Seen is a lower bound: the entropy of the different "
    "codes themselves, which a sample of N tokens cannot make more than log2 N.",
    "It is the entropy of what a coder keeps of the hidden states, and not of the states "
    "themselves, which are not discrete: compare coders at the same FVU. Dependence of three "
    "latents or more that shows in no pair of them (one that fires when exactly one of two "
    "others does) is in none of the bounds.",
    "Of a coder with values, only which latents are active is counted, and none of its values: "
    "it has more information than its entropy here.",
    "Brackets: 95% of bootstrap replicates over documents.",
)
COLUMNS = (
    Column("coder"),
    Column("site", "The activation it reads."),
    Column("codes", "0/1, or which latents of a coder with values are active."),
    Column("latents", "Width of the code.", "d"),
    Column("L0", "Mean active latents a token.", ".1f"),
    Column("FVU", "Squared error over total variance.", ".3f"),
    Column("independent", "Bits a token: sum over latents of the entropy of their rates.", ".1f"),
    Column("held out", "The same, of half the tokens by the rates of the other half.", ".1f"),
    Column("tree", "Held out, each latent given one other.", ".1f"),
    Column("blocks", "Held out, groups of up to eight latents.", ".1f"),
    Column("seen", "Lower bound: entropy of the different codes.", ".1f"),
    Column("at most", "What the lower bound can be at most: log2 of the tokens.", ".1f"),
)


@dataclass(frozen=True)
class EntropyOfCoder:
    """What was found of one coder.

    Attributes:
        candidate: the coder.
        figures: of its codes and outputs.
        bounds: on the entropy.
    """

    candidate: Candidate
    figures: CoderFigures
    bounds: CodeEntropy

    @property
    def lowest(self) -> Estimate:
        """The best upper bound."""
        bounds = (self.bounds.independent, self.bounds.tree, self.bounds.blocks)
        return min(bounds, key=lambda each: each.value)


def run_entropy(coders: list[str], config: EntropyConfig) -> Analysis:
    """Measure the entropy of coders' codes; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders that cannot be compared, or a text that cannot be read.
    """
    opened = open_coders(coders, config, config.output)
    figures = [RunningFigures(each.coder) for each in opened.candidates]
    codes = [GatheredCodes(each.coder.cfg.d_sae) for each in opened.candidates]
    variances = {
        each.site: RunningVariance(each.d_out) for each in opened.candidates
    }  # one a site, whoever reads it
    for batch in read_text(opened, config):
        weights = document_weights(batch.text.documents)
        found: dict[Site, TokenBatch] = {}
        for site, variance in variances.items():
            found[site] = batch.tokens(opened.hooks[site], weights)
            variance.add(found[site])
        for candidate, running, gathered in zip(opened.candidates, figures, codes, strict=True):
            tokens = found[candidate.site]
            documents = torch.tensor(batch.text.documents)[tokens.row_of_token]
            gathered.add(running.add(tokens), documents)
    measured = [
        EntropyOfCoder(candidate, running.figures(variances[candidate.site]), gathered.entropy())
        for candidate, running, gathered in zip(opened.candidates, figures, codes, strict=True)
    ]
    analysis = Analysis(
        "entropy",
        "Entropy of codes",
        REMARKS,
        [Table("Bits a token", COLUMNS, [_row(each) for each in measured])],
        {"Bounds on the entropy": _bars(measured)},
        {"coders": [_described(each) for each in measured]},
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def _codes(found: EntropyOfCoder) -> str:
    return "which are active" if found.figures.stores_values else "0/1"


def _row(found: EntropyOfCoder) -> list[Value]:
    figures, bounds = found.figures, found.bounds
    return [
        found.candidate.name,
        str(found.candidate.site),
        _codes(found),
        figures.latents,
        figures.l0,
        figures.fvu,
        figures.entropy_bits,
        bounds.independent,
        bounds.tree,
        bounds.blocks,
        bounds.seen,
        bounds.most_seen,
    ]


def _described(found: EntropyOfCoder) -> Mapping[str, Any]:
    candidate, figures, bounds = found.candidate, found.figures, found.bounds
    return {
        "name": candidate.name,
        "hook_name": candidate.site.hook_name,
        "hook_name_out": candidate.site.hook_name_out,
        "codes": _codes(found),
        "latents": figures.latents,
        "tokens": figures.tokens,
        "l0": figures.l0,
        "fvu": figures.fvu,
        "independent_bits": figures.entropy_bits,
        "held_out": {
            "fitted_tokens": bounds.fitted_tokens,
            "measured_tokens": bounds.measured_tokens,
            "independent_bits": bounds.independent,
            "tree_bits": bounds.tree,
            "blocks_bits": bounds.blocks,
        },
        "seen_bits": bounds.seen,
        "most_seen_bits": bounds.most_seen,
        "dependent_pairs": bounds.dependent_pairs,
    }


def _bars(measured: list[EntropyOfCoder]) -> go.Figure:
    figure = go.Figure()
    sites = {each.candidate.site for each in measured}
    for each in measured:
        bounds = each.bounds
        shown = {
            "independent": each.figures.entropy_bits,
            "held out": bounds.independent,
            "tree": bounds.tree,
            "blocks": bounds.blocks,
            "seen": Estimate(bounds.seen, float("nan"), float("nan")),
        }
        name = each.candidate.name
        figure.add_bar(
            x=list(shown),
            y=[value.value for value in shown.values()],
            error_y=error_bars(list(shown.values())),
            name=name if len(sites) == 1 else f"{name} at {each.candidate.site}",
        )
    figure.update_yaxes(title="bits a token")
    return figure
