"""The plots of a comparison's report, and what makes a plot a part of a page."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.samples import STRATA

# Rates on the logarithmic axis.
LOWEST_RATE_EXPONENT = -5
BINS_PER_DECADE = 4


def coder_plots(coders: list[ComparedCoder]) -> dict[str, go.Figure]:
    """Those of the coders of one site, by title."""
    return {
        "Firing rates": _rates(coders),
        "FVU by active latents": _scatter(coders, "l0", "active latents a token (L0)"),
        "FVU by bits": _scatter(coders, "bits", "bits a token"),
        "FVU of each document": _spread(coders),
        "Firing told from its tokens, by activation": _predictable(coders),
    }


def _rates(coders: list[ComparedCoder]) -> go.Figure:
    """Histograms of firing rates, on a logarithmic axis."""
    edges = torch.logspace(
        LOWEST_RATE_EXPONENT, 0, -LOWEST_RATE_EXPONENT * BINS_PER_DECADE + 1, dtype=torch.float64
    )
    centres = (edges[:-1] * edges[1:]).sqrt()
    figure = go.Figure()
    for coder in coders:
        rates = coder.figures.rates
        counts = torch.histogram(rates[rates > 0].clamp_max(1 - 1e-9), edges).hist
        figure.add_scatter(
            x=centres.tolist(),
            y=counts.tolist(),
            name=coder.candidate.name,
            line_shape="hvh",
            mode="lines",
        )
    title = "firing rate (dead latents left out)"
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", title=title)
    figure.update_yaxes(title="latents")
    return figure


def _scatter(coders: list[ComparedCoder], across: str, title: str) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        x: Estimate = getattr(coder.figures, across)
        y = coder.figures.fvu
        figure.add_scatter(
            x=[x.value],
            y=[y.value],
            error_x=error_bars([x]),
            error_y=error_bars([y]),
            name=coder.candidate.name,
            mode="markers",
            marker_size=10,
        )
    figure.update_xaxes(type="log", title=title)
    figure.update_yaxes(title="FVU", rangemode="tozero")
    return figure


def error_bars(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Bars from the points of a plot to the ends of their intervals, where they have one."""
    return {
        "array": [each.high - each.value for each in estimates],
        "arrayminus": [each.value - each.low for each in estimates],
    }


def _spread(coders: list[ComparedCoder]) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        figure.add_box(y=coder.figures.document_fvu.tolist(), name=coder.candidate.name)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(title="FVU of a document")
    return figure


def _predictable(coders: list[ComparedCoder]) -> go.Figure:
    """Of each sampled latent, by thirds of its activations; all firings where these are alike."""
    figure = go.Figure()
    for coder in coders:
        areas = coder.predictability.areas
        chosen = ("all",) if areas[:, 1:].isnan().all() else STRATA
        labels = [[stratum] * len(areas) for stratum in chosen]
        figure.add_box(
            x=[label for of_stratum in labels for label in of_stratum],
            y=areas[:, : len(chosen)].T.flatten().tolist(),
            name=coder.candidate.name,
        )
    figure.update_layout(boxmode="group")
    figure.update_xaxes(title="activation, thirds of a latent's firings")
    figure.update_yaxes(title="area under the ROC curve")
    return figure


def plot_html(figure: go.Figure, *, library: bool) -> str:
    """A plot as a part of a page; with plotly's library in it, once a page."""
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        # Anchored below, it takes what room it needs from the plot and covers none of it.
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=library,
        # Its buttons lie over the legend on a phone.
        config={"displayModeBar": False, "responsive": True},
    )
