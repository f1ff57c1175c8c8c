"""The page of `sae-binary entropy-check`: its columns, remarks and plot."""

from dataclasses import dataclass

import plotly.graph_objects as go
from sae_lens.synthetic import SyntheticDataEvalResult

from sae_binary_ext.commands.entropy_check.known_states import States
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import curves, grouped

REMARKS = (
    "Each hidden state is a sum of r random directions with coefficients of 0 or 1, so that its "
    "entropy is known. A coder with the entropy loss is trained on the states. Fair: each "
    "coefficient is 1 half of the time, and the truth is r bits. Unequal: coefficients are 1 from "
    "5% to 50% of the time. Pairs: each coefficient is correlated with one other (0.8 before the "
    "threshold). The independent estimate is then too high by the information that a pair shares, "
    "and the bounds tree and blocks should find it. Noise: every dimension has noise with a tenth "
    "of the signal's deviation. The entropy of a state is then infinite, and the truth shown is "
    "that of the coefficients.",
    "Training leaves latents that repeat others, because the entropy of a latent that fires half "
    "of the time has no slope. Training therefore stops four times. Each time latents are removed "
    "one by one, as long as that lowers FVU plus the price of the bits; the decoder of the "
    "remaining latents is the one of least squared error. Trained is the independent estimate "
    "before the first removal.",
    "Recovery is SAELens' mean correlation coefficient of decoder rows and directions. It is 1 if "
    "every direction has a decoder row. A right estimate here shows that training and counting "
    "work. It does not show that hidden states of a real model are such sums. For a real model the "
    "estimate depends on the width and on the price of a bit, and it measures the information that "
    "this coder keeps.",
)


@dataclass(frozen=True)
class Checked:
    """States of known entropy, and the coder trained on them.

    Attributes:
        states: the source of states.
        trained: sum of the entropies of the firing rates, in bits, before the first latents were
            removed.
        latents: number of latents left.
        bounds: entropy of the codes.
        independent: sum of the entropies of the firing rates, in bits, over all states measured.
        found: SAELens' figures: recovery, explained variance and more.
    """

    states: States
    trained: float
    latents: int
    bounds: CodeEntropy
    independent: float
    found: SyntheticDataEvalResult


COLUMNS: tuple[Column[Checked], ...] = (
    Column("states", value=lambda c: c.states.name, key="states"),
    Column(
        "d",
        "Dimensions of a hidden state.",
        "d",
        lambda c: c.states.dictionary.hidden_dim,
        "dimensions",
    ),
    Column(
        "r", "Number of directions.", "d", lambda c: c.states.dictionary.num_features, "directions"
    ),
    Column(
        "truth",
        "Entropy of the coefficients, in bits.",
        ".2f",
        lambda c: c.states.truth,
        "truth_bits",
    ),
    Column(
        "independent",
        "Sum of the entropies of the firing rates, in bits.",
        ".2f",
        lambda c: c.independent,
        "independent_bits",
    ),
    Column(
        "trained",
        "The same before the first latents were removed.",
        ".2f",
        lambda c: c.trained,
        "trained_bits",
    ),
    Column("", key="latents"),
    Column(
        "off",
        "Relative error of the independent estimate.",
        "+.1%",
        lambda c: c.independent / c.states.truth - 1,
    ),
    Column(
        "tree", "Upper bound: each latent given one other.", ".2f", lambda c: c.bounds.tree.value
    ),
    Column(
        "blocks",
        "Upper bound: groups of up to eight latents.",
        ".2f",
        lambda c: c.bounds.blocks.value,
    ),
    Column("", value=lambda c: c.bounds.tree, key="tree_bits"),
    Column("", value=lambda c: c.bounds.blocks, key="blocks_bits"),
    Column("", value=lambda c: c.bounds.seen, key="seen_bits"),
    Column("", value=lambda c: c.bounds.most_seen, key="most_seen_bits"),
    Column(
        "FVU",
        "Squared error over total variance.",
        ".4f",
        lambda c: 1 - c.found.explained_variance,
    ),
    Column("recovery", "SAELens' mean correlation coefficient.", ".3f", lambda c: c.found.mcc),
    Column("L0", "Mean active latents.", ".1f", lambda c: c.found.sae_l0),
    Column("", value=lambda c: c.found.to_dict(), key="recovery"),
)


def entropy_check_page(checked: list[Checked]) -> Analysis:
    """Table, plot and remarks."""
    return Analysis(
        "entropy-check",
        "Entropy of known states",
        REMARKS,
        [table_of("Bits a state", COLUMNS, checked)],
        {"Estimate by truth": _by_truth(checked)},
        {"sources": described(COLUMNS, checked)},
    )


def _by_truth(checked: list[Checked]) -> go.Figure:
    groups = grouped(checked, lambda c: f"{c.states.name}, d = {c.states.dictionary.hidden_dim}")
    points = {name: [(c.states.truth, c.independent) for c in own] for name, own in groups.items()}
    lowest = {
        "lower of tree, blocks": [
            (c.states.truth, min(c.bounds.tree.value, c.bounds.blocks.value)) for c in checked
        ]
    }
    ends = [(end([c.states.truth for c in checked]),) * 2 for end in (min, max)]
    x, y = "truth, bits", "entropy of the codes, bits"
    figure = curves({"truth": ends}, x, y, mode="lines", line_dash="dot")
    figure.add_traces(curves(points, x, y, mode="markers", marker_size=10).data)
    figure.add_traces(curves(lowest, x, y, mode="markers", marker_symbol="line-ew-open").data)
    figure.update_xaxes(type="log", dtick="D2")
    return figure.update_yaxes(type="log", dtick="D2")
