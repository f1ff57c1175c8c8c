"""The page of `sae-binary entropy`: its table and plot."""

from dataclasses import dataclass

from sae_binary_ext.commands.entropy.config import EntropyConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import bars


@dataclass(frozen=True)
class EntropyOfCoder:
    """A coder, its figures, and bounds on the entropy of its codes."""

    candidate: Candidate
    figures: CoderFigures
    bounds: CodeEntropy


CODES = {False: "0/1", True: "which are active"}


def _held_out(found: EntropyOfCoder) -> dict[str, Estimate | int]:
    bounds = found.bounds
    tokens = {"fitted_tokens": bounds.fitted_tokens, "measured_tokens": bounds.measured_tokens}
    bits = {"tree_bits": bounds.tree, "blocks_bits": bounds.blocks}
    return {**tokens, "independent_bits": bounds.independent, **bits}


COLUMNS: tuple[Column[EntropyOfCoder], ...] = (
    Column("coder", value=lambda e: e.candidate.name, key="name"),
    Column("site", value=lambda e: str(e.candidate.site)),
    Column("", value=lambda e: e.candidate.site.hook_name, key="hook_name"),
    Column("", value=lambda e: e.candidate.site.hook_name_out, key="hook_name_out"),
    Column("codes", value=lambda e: CODES[e.figures.stores_values], key="codes"),
    Column("latents", form="d", value=lambda e: e.figures.latents, key="latents"),
    Column("", value=lambda e: e.figures.tokens, key="tokens"),
    Column("L0", form=".1f", value=lambda e: e.figures.l0, key="l0"),
    Column("FVU", form=".3f", value=lambda e: e.figures.fvu, key="fvu"),
    Column(
        "independent", form=".1f", value=lambda e: e.figures.entropy_bits, key="independent_bits"
    ),
    Column("held out", form=".1f", value=lambda e: e.bounds.independent),
    Column("tree", form=".1f", value=lambda e: e.bounds.tree),
    Column("blocks", form=".1f", value=lambda e: e.bounds.blocks),
    Column("", value=_held_out, key="held_out"),
    Column("seen", form=".1f", value=lambda e: e.bounds.seen, key="seen_bits"),
    Column("at most", form=".1f", value=lambda e: e.bounds.most_seen, key="most_seen_bits"),
    Column("", value=lambda e: e.bounds.dependent_pairs, key="dependent_pairs"),
)


def entropy_page(found: list[EntropyOfCoder], config: EntropyConfig) -> Analysis:
    """Make the page: its table, plot and remarks."""
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
    plots = {"Bounds on the entropy": bars(heights, "bits a token")}
    return analysis_of(__file__, COLUMNS, found, plots, "coders")
