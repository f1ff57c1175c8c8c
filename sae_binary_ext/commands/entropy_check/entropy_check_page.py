"""The page of `sae-binary entropy-check`: its table and plot."""

from dataclasses import dataclass

from sae_lens.synthetic import SyntheticDataEvalResult

from sae_binary_ext.commands.entropy_check.known_states import States
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped


@dataclass(frozen=True)
class Checked:
    """Figures of a coder trained on states of known entropy; `found` has SAELens' figures.

    `trained` and `independent` are entropies of the firing rates, in bits, summed over latents.
    `trained` is before any latents were removed, `independent` is at the end.
    """

    states: States
    trained: float
    latents: int
    bounds: CodeEntropy
    independent: float
    found: SyntheticDataEvalResult


COLUMNS: tuple[Column[Checked], ...] = (
    Column("states", value=lambda c: c.states.name, key="states"),
    Column("d", form="d", value=lambda c: c.states.dictionary.hidden_dim, key="dimensions"),
    Column("r", form="d", value=lambda c: c.states.dictionary.num_features, key="directions"),
    Column("truth", form=".2f", value=lambda c: c.states.truth, key="truth_bits"),
    Column("independent", form=".2f", value=lambda c: c.independent, key="independent_bits"),
    Column("trained", form=".2f", value=lambda c: c.trained, key="trained_bits"),
    Column("", key="latents"),
    Column("off", form="+.1%", value=lambda c: c.independent / c.states.truth - 1),
    Column("tree", form=".2f", value=lambda c: c.bounds.tree.value),
    Column("blocks", form=".2f", value=lambda c: c.bounds.blocks.value),
    Column("", value=lambda c: c.bounds.tree, key="tree_bits"),
    Column("", value=lambda c: c.bounds.blocks, key="blocks_bits"),
    Column("", value=lambda c: c.bounds.seen, key="seen_bits"),
    Column("", value=lambda c: c.bounds.most_seen, key="most_seen_bits"),
    Column("FVU", form=".4f", value=lambda c: 1 - c.found.explained_variance),
    Column("recovery", form=".3f", value=lambda c: c.found.mcc),
    Column("L0", form=".1f", value=lambda c: c.found.sae_l0),
    Column("", value=lambda c: c.found.to_dict(), key="recovery"),
)


def entropy_check_page(checked: list[Checked]) -> Analysis:
    """Make the page: its table, plot and remarks."""
    groups = grouped(checked, lambda c: f"{c.states.name}, d = {c.states.dictionary.hidden_dim}")
    points = {name: [(c.states.truth, c.independent) for c in own] for name, own in groups.items()}
    lowest = [(c.states.truth, min(c.bounds.tree.value, c.bounds.blocks.value)) for c in checked]
    ends = [(end([c.states.truth for c in checked]),) * 2 for end in (min, max)]
    axes = {"x": "truth, bits", "y": "entropy of the codes, bits"}
    figure = curves({"truth": ends}, **axes, mode="lines", line_dash="dot")
    figure.add_traces(curves(points, **axes, mode="markers", marker_size=10).data)
    bounds = {"lower of tree, blocks": lowest}
    figure.add_traces(curves(bounds, **axes, mode="markers", marker_symbol="line-ew-open").data)
    figure.update_xaxes(type="log", dtick="D2").update_yaxes(type="log", dtick="D2")
    return analysis_of(__file__, COLUMNS, checked, {"Estimate by truth": figure}, "sources")
