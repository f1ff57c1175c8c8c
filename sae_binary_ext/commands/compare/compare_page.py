"""A comparison as report.html: one file that needs no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from sae_binary_ext.commands.compare.latent_views import LatentView
from sae_binary_ext.commands.interpret.interpret_page import Interpretability
from sae_binary_ext.measure.comparison import ComparedCoder
from sae_binary_ext.report.analysis import write_page
from sae_binary_ext.report.comparison_files import site_tables
from sae_binary_ext.report.plots import coder_plots, grouped


def write_comparison_report(
    coders: list[ComparedCoder],
    latents: list[list[LatentView]],
    run: dict[str, Any],
    path: Path,
    more_plots: Mapping[str, go.Figure] | None = None,
    interpretability: Interpretability | None = None,
) -> None:
    """Write the report: sortable tables, plots and views of latents.

    Args:
        coders: the figures of each coder.
        latents: views of each coder's latents.
        run: the comparison's settings.
        path: the file.
        more_plots: others to show, by title.
        interpretability: scores of the same coders.
    """
    by_site = grouped(coders, lambda coder: str(coder.candidate.site))
    plots = {site: coder_plots(of_site) for site, of_site in by_site.items()}
    plots[""] = dict(more_plots or {})
    if interpretability is not None:
        plots[""] |= {"Interpretability, by firing rate": interpretability.plot}
    views = zip(coders, latents, strict=True)
    write_page(
        path,
        "comparison.html.j2",
        plots,
        title="Coders compared",
        tables=site_tables(coders),
        interpretability=interpretability,
        run=run,
        tokens=coders[0].figures.tokens,
        data=_embedded({coder.candidate.name: [vars(view) for view in of] for coder, of in views}),
    )


def _embedded(data: Any) -> Markup:
    # "</script>" within a text would end the element.
    return Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))
