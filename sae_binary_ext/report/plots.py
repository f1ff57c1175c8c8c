"""Draws curves, bars and the plots of a comparison, and writes pages that hold them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import plotly.graph_objects as go
import torch
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.measure.samples import STRATA
from sae_binary_ext.report.tables import number_of

# The lowest firing rate on the logarithmic axis is 10 to this power.
LOWEST_RATE_EXPONENT, BINS_PER_DECADE = -5, 4
T = TypeVar("T")
K = TypeVar("K")


def grouped(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group things by their key, in the order in which keys first appear."""
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def curves(
    points: Mapping[str, Sequence[tuple[Any, ...]]], x: str, y: str, **settings: Any
) -> go.Figure:
    """A plot with one curve for each name; x and y are the titles of the axes.

    A point is (x, y) or (x, y, text). If a y is an Estimate, it gets error bars. A point whose y is
    None is left out. The settings go to plotly's scatter traces.
    """
    figure = go.Figure()
    for name, of_name in points.items():
        there = [point for point in of_name if point[1] is not None]
        if there:
            across, values, *text = zip(*there, strict=True)
            own = {"mode": "lines+markers"} | settings | ({"text": text[0]} if text else {})
            figure.add_scatter(x=across, **_along("y", values), name=name, **own)
    figure.update_xaxes(title=x)
    return figure.update_yaxes(title=y)


def bars(heights: Mapping[str, Mapping[str, Estimate]], y: str) -> go.Figure:
    """A plot with a group of bars for each name. Bars with the same label are side by side."""
    figure = go.Figure()
    for name, of_name in heights.items():
        figure.add_bar(x=list(of_name), **_along("y", list(of_name.values())), name=name)
    return figure.update_yaxes(title=y)


def _along(axis: str, values: Sequence[Any]) -> dict[str, Any]:
    """Values along x or y in plotly's form, with error bars if all are estimates."""
    along = {axis: list(map(number_of, values))}
    if not all(isinstance(each, Estimate) for each in values):
        return along
    above = [each.high - each.value for each in values]
    below = [each.value - each.low for each in values]
    return along | {f"error_{axis}": {"array": above, "arrayminus": below}}


def coder_plots(coders: list[ComparedCoder]) -> dict[str, go.Figure]:
    """Plots of the compared coders of one site, by title."""
    return {
        "Firing rates": _rates(coders),
        "FVU by active latents": _scatter(coders, "l0", "active latents a token (L0)"),
        "FVU by bits": _scatter(coders, "bits", "bits a token"),
        "FVU of each document": _spread(coders),
        "Firing told from its tokens, by activation": _predictable(coders),
    }


def _rates(coders: list[ComparedCoder]) -> go.Figure:
    """Histograms of firing rates, on a logarithmic axis."""
    number = -LOWEST_RATE_EXPONENT * BINS_PER_DECADE + 1
    edges = torch.logspace(LOWEST_RATE_EXPONENT, 0, number, dtype=torch.float64)
    centres = (edges[:-1] * edges[1:]).sqrt().tolist()
    counts: dict[str, list[tuple[float, float]]] = {}
    for coder in coders:
        rates = coder.figures.rates
        histogram = torch.histogram(rates[rates > 0].clamp_max(1 - 1e-9), edges).hist
        counts[coder.candidate.name] = list(zip(centres, histogram.tolist(), strict=True))
    title = "firing rate (dead latents left out)"
    figure = curves(counts, title, "latents", line_shape="hvh", mode="lines")
    return figure.update_xaxes(type="log", dtick=1, exponentformat="power")


def _scatter(coders: list[ComparedCoder], across: str, title: str) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        x, y = getattr(coder.figures, across), coder.figures.fvu
        place = _along("x", [x]) | _along("y", [y])
        figure.add_scatter(**place, name=coder.candidate.name, mode="markers", marker_size=10)
    figure.update_xaxes(type="log", title=title)
    return figure.update_yaxes(title="FVU", rangemode="tozero")


def _spread(coders: list[ComparedCoder]) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        figure.add_box(y=coder.figures.document_fvu.tolist(), name=coder.candidate.name)
    figure.update_layout(showlegend=False)
    return figure.update_yaxes(title="FVU of a document")


def _predictable(coders: list[ComparedCoder]) -> go.Figure:
    """Box plots over sampled latents; one for each third of activations if codes have values."""
    figure = go.Figure()
    for coder in coders:
        areas = coder.predictability.areas
        chosen = ("all",) if areas[:, 1:].isnan().all() else STRATA
        figure.add_box(
            x=[stratum for stratum in chosen for _ in areas],
            y=areas[:, : len(chosen)].T.flatten().tolist(),
            name=coder.candidate.name,
        )
    figure.update_layout(boxmode="group")
    figure.update_xaxes(title="activation, thirds of a latent's firings")
    return figure.update_yaxes(title="area under the ROC curve")


def plot_html(figure: go.Figure, *, library: bool) -> Markup:
    """A plot as part of a page. The first plot of a page must include plotly's library."""
    # Anchor the legend at its lower edge, so that it grows upwards and never covers the plot.
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 60, "r": 20, "t": 20, "b": 50}
    figure.update_layout(template="plotly_white", height=420, margin=margin, legend=legend)
    # Hide plotly's buttons, because they would cover the legend on a phone.
    config = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=library, config=config))


def write_page(
    path: Path, template: str, plots: Mapping[str, Mapping[str, go.Figure]], **shown: Any
) -> None:
    """Write a page that needs no network, from a template in report/templates.

    The template gets the plots of each site by title, as HTML, and the values of `shown`.
    """
    first = next((plot for of_site in plots.values() for plot in of_site.values()), None)
    html = {
        site: {title: plot_html(plot, library=plot is first) for title, plot in of_site.items()}
        for site, of_site in plots.items()
    }
    environment = Environment(loader=PackageLoader("sae_binary_ext.report"), autoescape=True)
    text = environment.get_template(template).render(plots=html, **shown)
    path.write_text(text, encoding="utf-8")
