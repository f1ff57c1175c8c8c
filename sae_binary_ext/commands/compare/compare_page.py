"""A comparison as report.html: one file that needs no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sae_binary_ext.commands.compare.latent_views import LatentView
from sae_binary_ext.commands.interpret.interpret_page import Interpretability
from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report.columns import TABLE, shown
from sae_binary_ext.report.plots import coder_plots, plot_html


def write_comparison_report(
    coders: list[ComparedCoder],
    latents: list[list[LatentView]],
    run: dict[str, Any],
    path: Path,
    more_plots: Mapping[str, go.Figure] | None = None,
    interpretability: Interpretability | None = None,
) -> None:
    """Sortable tables, plots and a browser of latents.

    Args:
        coders: what was measured.
        latents: of each coder, those to browse.
        run: the comparison's settings.
        path: the file.
        more_plots: others to show, by title.
        interpretability: scores of the same coders.
    """
    environment = Environment(loader=PackageLoader("sae_binary_ext.report"), autoescape=True)
    by_site: dict[str, list[ComparedCoder]] = {}
    for coder in coders:
        by_site.setdefault(str(coder.candidate.site), []).append(coder)
    plots = {site: coder_plots(of_site) for site, of_site in by_site.items()}
    more = {"": dict(more_plots or {})}
    if interpretability is not None:
        more[""] |= {"Interpretability, by firing rate": interpretability.plot}
    page = environment.get_template("comparison.html.j2").render(
        columns=[(column.label, column.meaning) for column in TABLE],
        tables={site: [_row(coder) for coder in of_site] for site, of_site in by_site.items()},
        interpretability=interpretability,
        run=run,
        tokens=coders[0].figures.tokens,
        plots=_plots_html(plots | more),
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


def _plots_html(plots: Mapping[str, Mapping[str, go.Figure]]) -> dict[str, dict[str, Markup]]:
    """Of each site's plots their html; the page's first has the library in it."""
    first = next(iter(next(iter(plots.values())).values()))
    return {
        site: {
            title: Markup(plot_html(figure, library=figure is first))
            for title, figure in of_site.items()
        }
        for site, of_site in plots.items()
    }
