"""The page of `sae-binary entropy-profile`: its table and plots."""

from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig
from sae_binary_ext.measure.code_entropy import CodeEntropy
from sae_binary_ext.measure.metrics import CoderMetrics
from sae_binary_ext.report import Analysis, Column, analysis_of, described
from sae_binary_ext.report.plots import curves, grouped

SATURATED = 0.95


@dataclass(frozen=True)
class ProfilePoint:
    """Figures of the coder of one point. `at` is a position, a number of examples, or "all"."""

    layer: int
    at: int | str
    states: int
    metrics: CoderMetrics
    bounds: CodeEntropy


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
    """Make the page: its table, plots and remarks."""
    by_layer = grouped(points, lambda point: point.layer)
    if config.along == "layers":
        x, named = "layer", {"all positions": [(point.layer, point) for point in points]}
    else:
        x = "position" if config.prompts == "text" else "examples before the answer"
        # The axis has categories (text), because 0 examples have no place on a logarithmic axis.
        named = {
            f"layer {layer}": [(str(point.at), point) for point in own]
            for layer, own in by_layer.items()
        }

    def plot(title: str, value: Callable[[ProfilePoint], float]) -> go.Figure:
        pairs = {name: [(at, value(point)) for at, point in own] for name, own in named.items()}
        figure = curves(pairs, x, title).update_yaxes(rangemode="tozero")
        return figure if x == "layer" else figure.update_xaxes(type="category")

    plots = {
        "Entropy": plot("bits a state", lambda p: p.metrics.entropy_bits),
        "FVU": plot("FVU", lambda p: p.metrics.fvu),
    }
    saturation = {layer: _saturated(own) for layer, own in by_layer.items() if len(own) > 1}
    results = {"points": described(COLUMNS, points), "saturation": saturation}
    return analysis_of(__file__, COLUMNS, points, plots, results)


def _saturated(points: list[ProfilePoint]) -> int | str:
    """The first point of a layer that reaches 95% of the layer's highest entropy."""
    enough = SATURATED * max(point.metrics.entropy_bits for point in points)
    return next(point.at for point in points if point.metrics.entropy_bits >= enough)
