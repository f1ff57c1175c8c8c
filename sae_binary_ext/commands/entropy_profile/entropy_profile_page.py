"""The page of `sae-binary entropy-profile`: what it shows of each result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.measure.metrics import CoderMetrics
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import curves, grouped

SATURATED = 0.95


@dataclass(frozen=True)
class ProfilePoint:
    """Figures of the coder of one point: a layer, and a position, number of examples or "all"."""

    layer: int
    at: int | str
    states: int
    metrics: CoderMetrics
    bounds: CodeEntropy


TEXTS = Path(__file__).with_name("page.toml")
COLUMNS: tuple[Column[ProfilePoint], ...] = (
    Column("layer", form="d", key="layer"),
    Column("at", value=lambda p: str(p.at)),
    Column("", key="at"),
    Column("states", form="d", key="states"),
    Column("FVU", form=".3f", value=lambda p: p.metrics.fvu, key="fvu"),
    Column("L0", form=".1f", value=lambda p: p.metrics.l0, key="l0"),
    Column("", value=lambda p: p.metrics.dead, key="dead"),
    Column(
        "independent", form=".1f", value=lambda p: p.metrics.entropy_bits, key="independent_bits"
    ),
    Column("tree", form=".1f", value=lambda p: p.bounds.tree.value),
    Column("blocks", form=".1f", value=lambda p: p.bounds.blocks.value),
    Column("", value=lambda p: p.bounds.tree, key="tree_bits"),
    Column("", value=lambda p: p.bounds.blocks, key="blocks_bits"),
    Column("", value=lambda p: p.bounds.most_seen, key="most_seen_bits"),
)


def entropy_profile_page(points: list[ProfilePoint], config: EntropyProfileConfig) -> Analysis:
    """Table, plots and remarks."""
    return analysis_of(
        TEXTS,
        COLUMNS,
        points,
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
