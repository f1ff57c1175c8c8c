"""The page of `sae-binary entropy`: its columns, remarks and plot."""

from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.entropy.config import EntropyConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.intervals import Estimate
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import bars

REMARKS = (
    "The entropy of each coder's codes over all tokens read, in bits per token. Independent is the "
    "sum of the entropies of the latents' firing rates. It is the entropy of the codes if latents "
    "fire independently of each other, and too high if they do not. Held out, tree and blocks "
    "are upper bounds: a model of the codes is fitted to one half of the tokens and measured on "
    "the other half. Held out uses the firing rates alone. Tree predicts each latent from one "
    "other latent. Blocks uses groups of up to eight latents that depend on each other most. The "
    "lowest of the three is the best bound. Seen is a lower bound: the entropy of the different "
    "codes that occurred. With N tokens it cannot exceed log2 N.",
    "This is the entropy of the information that a coder keeps, not of the hidden states "
    "themselves: those are not discrete. Compare coders at the same FVU. The bounds see dependence "
    "between pairs of latents. They miss dependence that no pair shows, such as a latent that "
    "fires if exactly one of two others does.",
    "For a coder with values, only which latents are active is counted. Its values hold more "
    "information than the entropy here.",
    "Brackets: 95% of bootstrap replicates over documents.",
)


@dataclass(frozen=True)
class EntropyOfCoder:
    """One coder's figures.

    Attributes:
        candidate: the coder.
        figures: of its codes and outputs.
        bounds: on the entropy of its codes.
    """

    candidate: Candidate
    figures: CoderFigures
    bounds: CodeEntropy


def _codes(found: EntropyOfCoder) -> str:
    return "which are active" if found.figures.stores_values else "0/1"


def _held_out(found: EntropyOfCoder) -> dict[str, Estimate | int]:
    bounds = found.bounds
    return {
        "fitted_tokens": bounds.fitted_tokens,
        "measured_tokens": bounds.measured_tokens,
        "independent_bits": bounds.independent,
        "tree_bits": bounds.tree,
        "blocks_bits": bounds.blocks,
    }


COLUMNS: tuple[Column[EntropyOfCoder], ...] = (
    Column("coder", value=lambda e: e.candidate.name, key="name"),
    Column("site", "The activation that the coder reads.", "", lambda e: str(e.candidate.site)),
    Column("", value=lambda e: e.candidate.site.hook_name, key="hook_name"),
    Column("", value=lambda e: e.candidate.site.hook_name_out, key="hook_name_out"),
    Column(
        "codes", "0/1, or which latents of a coder with values are active.", "", _codes, "codes"
    ),
    Column("latents", "Width of the code.", "d", lambda e: e.figures.latents, "latents"),
    Column("", value=lambda e: e.figures.tokens, key="tokens"),
    Column("L0", "Mean active latents per token.", ".1f", lambda e: e.figures.l0, "l0"),
    Column("FVU", "Squared error over total variance.", ".3f", lambda e: e.figures.fvu, "fvu"),
    Column(
        "independent",
        "Sum of the entropies of the latents' firing rates, in bits per token.",
        ".1f",
        lambda e: e.figures.entropy_bits,
        "independent_bits",
    ),
    Column(
        "held out",
        "Upper bound: half of the tokens, coded with the firing rates of the other half.",
        ".1f",
        lambda e: e.bounds.independent,
    ),
    Column(
        "tree",
        "Upper bound: held out, and each latent predicted from one other.",
        ".1f",
        lambda e: e.bounds.tree,
    ),
    Column(
        "blocks",
        "Upper bound: held out, in groups of up to eight latents.",
        ".1f",
        lambda e: e.bounds.blocks,
    ),
    Column("", value=_held_out, key="held_out"),
    Column(
        "seen",
        "Lower bound: entropy of the different codes that occurred.",
        ".1f",
        lambda e: e.bounds.seen,
        "seen_bits",
    ),
    Column(
        "at most",
        "Largest possible value of the lower bound: log2 of the number of tokens.",
        ".1f",
        lambda e: e.bounds.most_seen,
        "most_seen_bits",
    ),
    Column("", value=lambda e: e.bounds.dependent_pairs, key="dependent_pairs"),
)


def entropy_page(found: list[EntropyOfCoder], config: EntropyConfig) -> Analysis:
    """Table, plot and remarks."""
    return Analysis(
        "entropy",
        "Entropy of codes",
        REMARKS,
        [table_of("Bits a token", COLUMNS, found)],
        {"Bounds on the entropy": _bounds(found)},
        {"coders": described(COLUMNS, found)},
    )


def _bounds(found: list[EntropyOfCoder]) -> go.Figure:
    several = len({each.candidate.site for each in found}) > 1
    heights = {
        f"{each.candidate.name}{f' at {each.candidate.site}' * several}": {
            "independent": each.figures.entropy_bits,
            "held out": each.bounds.independent,
            "tree": each.bounds.tree,
            "blocks": each.bounds.blocks,
            "seen": Estimate(each.bounds.seen, float("nan"), float("nan")),
        }
        for each in found
    }
    return bars(heights, "bits a token")
