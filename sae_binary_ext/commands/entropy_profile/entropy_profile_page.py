"""The page of `sae-binary entropy-profile`: its columns, remarks and plots."""

from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.measure.metrics import CoderMetrics
from sae_binary_ext.report import Analysis, Column, described, table_of
from sae_binary_ext.report.plots import curves, grouped

SATURATED = 0.95
REMARKS = (
    "One coder with the entropy loss was trained for each point, on four fifths of the point's "
    "hidden states. All coders have the same width, saw the same number of states and paid the "
    "same for a bit. Entropy and FVU are of the other fifth. Independent is the sum of the "
    "entropies of the firing rates. Tree and blocks are upper bounds that allow for dependence: "
    "each is fitted to half of that fifth and measured on the other half.",
    "Hidden states are not discrete. The entropy is that of the information which a coder of this "
    "width keeps at this price, and it rises with more width and a lower price. Compare points of "
    "similar FVU: a point with a higher FVU shows too little entropy by comparison. Too few states "
    "make both figures worse.",
)


@dataclass(frozen=True)
class ProfilePoint:
    """One point of a profile.

    Attributes:
        layer: whose incoming residual stream is coded.
        at: position, number of examples, or "all".
        states: number of states measured.
        metrics: of the coder's codes and outputs.
        bounds: on the entropy of its codes.
    """

    layer: int
    at: int | str
    states: int
    metrics: CoderMetrics
    bounds: CodeEntropy


COLUMNS: tuple[Column[ProfilePoint], ...] = (
    Column("layer", "Layer whose incoming residual stream is coded.", "d", key="layer"),
    Column(
        "at",
        "Position of the token, or number of examples before the answer; all: every position.",
        "",
        lambda p: str(p.at),
    ),
    Column("", key="at"),
    Column("states", "Hidden states measured.", "d", key="states"),
    Column(
        "FVU",
        "Squared error over total variance, on states not trained on.",
        ".3f",
        lambda p: p.metrics.fvu,
        "fvu",
    ),
    Column("L0", "Mean active latents per state.", ".1f", lambda p: p.metrics.l0, "l0"),
    Column("", value=lambda p: p.metrics.dead, key="dead"),
    Column(
        "independent",
        "Sum of the entropies of the firing rates, in bits per state.",
        ".1f",
        lambda p: p.metrics.entropy_bits,
        "independent_bits",
    ),
    Column(
        "tree", "Upper bound: each latent given one other.", ".1f", lambda p: p.bounds.tree.value
    ),
    Column(
        "blocks",
        "Upper bound: groups of up to eight latents.",
        ".1f",
        lambda p: p.bounds.blocks.value,
    ),
    Column("", value=lambda p: p.bounds.tree, key="tree_bits"),
    Column("", value=lambda p: p.bounds.blocks, key="blocks_bits"),
    Column("", value=lambda p: p.bounds.most_seen, key="most_seen_bits"),
)


def entropy_profile_page(points: list[ProfilePoint], config: EntropyProfileConfig) -> Analysis:
    """Table, plots and remarks."""
    return Analysis(
        "entropy-profile",
        "Entropy of hidden states",
        REMARKS,
        [table_of("Bits a hidden state", COLUMNS, points)],
        {
            "Entropy": _curve(points, config, "bits a state", lambda p: p.metrics.entropy_bits),
            "FVU": _curve(points, config, "FVU", lambda p: p.metrics.fvu),
        },
        {"points": described(COLUMNS, points), "saturation": saturation(points)},
    )


def saturation(points: list[ProfilePoint]) -> dict[int, int | str]:
    """For each layer of several points: the first with 95% of the layer's highest entropy."""
    found: dict[int, int | str] = {}
    for layer in dict.fromkeys(point.layer for point in points):
        own = [point for point in points if point.layer == layer]
        highest = max(point.metrics.entropy_bits for point in own)
        reached = (p.at for p in own if p.metrics.entropy_bits >= SATURATED * highest)
        if len(own) > 1:
            found[layer] = next(reached)
    return found


def _curve(
    points: list[ProfilePoint],
    config: EntropyProfileConfig,
    title: str,
    value: Callable[[ProfilePoint], float],
) -> go.Figure:
    if config.along == "layers":
        pairs = [(point.layer, value(point)) for point in points]
        figure = curves({"all positions": pairs}, "layer", title)
    else:
        by_layer = grouped(points, lambda point: f"layer {point.layer}")
        # As text: 0 examples would have no place on a logarithmic axis.
        pairs = {name: [(str(p.at), value(p)) for p in own] for name, own in by_layer.items()}
        of = "position" if config.prompts == "text" else "examples before the answer"
        figure = curves(pairs, of, title).update_xaxes(type="category")
    return figure.update_yaxes(rangemode="tozero")
