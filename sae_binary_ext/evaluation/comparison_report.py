"""A comparison as report.html: one file that needs no network."""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sae_binary_ext.evaluation.bootstrap import Estimate
from sae_binary_ext.evaluation.columns import TABLE, shown
from sae_binary_ext.evaluation.compare import ComparedCoder
from sae_binary_ext.evaluation.latent_views import LatentView
from sae_binary_ext.evaluation.report import figure_html, rates_figure


def write_comparison_report(
    coders: list[ComparedCoder],
    latents: list[list[LatentView]],
    run: dict[str, Any],
    path: Path,
) -> None:
    """Sortable tables, plots and a browser of latents.

    Args:
        coders: what was measured.
        latents: of each coder, those to browse.
        run: the comparison's settings.
        path: the file.
    """
    environment = Environment(loader=PackageLoader("sae_binary_ext.evaluation"), autoescape=True)
    sites = dict.fromkeys(str(coder.candidate.site) for coder in coders)
    page = environment.get_template("comparison.html.j2").render(
        columns=TABLE,
        tables={
            site: [_row(coder) for coder in coders if str(coder.candidate.site) == site]
            for site in sites
        },
        run=run,
        tokens=coders[0].figures.tokens,
        plots=_plots(coders),
        data=_embedded(
            {
                coder.candidate.name: [vars(view) for view in views]
                for coder, views in zip(coders, latents, strict=True)
            }
        ),
    )
    path.write_text(page, encoding="utf-8")


def _row(coder: ComparedCoder) -> list[tuple[str, str, float | str]]:
    """Of each column what is shown, its interval and what it is sorted by; the name first."""
    cells: list[tuple[str, str, float | str]] = [(coder.candidate.name, "", coder.candidate.name)]
    for column in TABLE:
        value = column.value(coder)
        text, _, interval = shown(column, coder).partition(" ")
        cells.append((text, interval, value.value if isinstance(value, Estimate) else value))
    return cells


def _embedded(data: Any) -> Markup:
    # "</script>" within a text would end the element.
    return Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def _plots(coders: list[ComparedCoder]) -> dict[str, Markup]:
    rates = rates_figure({coder.candidate.name: coder.figures.rates for coder in coders})
    figures = {
        "Firing rates": rates,
        "FVU by active latents": _scatter(coders, "l0", "active latents a token (L0)"),
        "FVU by bits": _scatter(coders, "bits", "bits a token"),
        "FVU of each document": _spread(coders),
    }
    return {
        title: Markup(figure_html(figure, library=number == 0))
        for number, (title, figure) in enumerate(figures.items())
    }


def _scatter(coders: list[ComparedCoder], across: str, title: str) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        x: Estimate = getattr(coder.figures, across)
        y = coder.figures.fvu
        figure.add_scatter(
            x=[x.value],
            y=[y.value],
            error_x=_error_bars(x),
            error_y=_error_bars(y),
            name=coder.candidate.name,
            mode="markers",
            marker_size=10,
        )
    figure.update_xaxes(type="log", title=title)
    figure.update_yaxes(title="FVU", rangemode="tozero")
    return figure


def _error_bars(estimate: Estimate) -> dict[str, Any]:
    above, below = estimate.high - estimate.value, estimate.value - estimate.low
    return {"array": [above], "arrayminus": [below], "visible": above == above}


def _spread(coders: list[ComparedCoder]) -> go.Figure:
    figure = go.Figure()
    for coder in coders:
        figure.add_box(y=coder.figures.document_fvu.tolist(), name=coder.candidate.name)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(title="FVU of a document")
    return figure
