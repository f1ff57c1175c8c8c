"""The comparison as a terminal table, metrics.json and a self-contained report.html."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import torch
from jinja2 import Environment, PackageLoader
from torch import Tensor

from sae_binary_ext.evaluation.contexts import LatentContexts
from sae_binary_ext.evaluation.metrics import CoderMetrics
from sae_binary_ext.saelens.splice import SplicedLosses

# Rates on the report's logarithmic axis; a latent that never fired stands left of it.
LOWEST_RATE_EXPONENT = -5
BINS_PER_DECADE = 4
CURVE_POINTS = 200


@dataclass(frozen=True)
class CoderResult:
    """Everything the report shows of one coder.

    Attributes:
        name: row label.
        settings: architecture, learning rate and the like, as shown.
        metrics: measured on held-out tokens.
        losses: measured on held-out tokens with the reconstruction spliced in.
        seconds: training time.
        fvu_by_step: of each training batch.
        latents: some latents with their text.
    """

    name: str
    settings: dict[str, str]
    metrics: CoderMetrics
    losses: SplicedLosses
    seconds: float
    fvu_by_step: list[float]
    latents: list[LatentContexts]


COLUMNS = (
    "coder",
    "latents",
    "FVU",
    "explained variance",
    "L0",
    "dead",
    "dense >10%",
    "dense >50%",
    "entropy, bits",
    "CE recovered",
    "training, s",
)


def table_row(result: CoderResult) -> tuple[str, ...]:
    """The figures of COLUMNS, formatted."""
    metrics = result.metrics
    return (
        result.name,
        str(metrics.latents),
        f"{metrics.fvu:.3f}",
        f"{metrics.explained_variance:.3f}",
        f"{metrics.l0:.1f}",
        f"{metrics.dead} ({metrics.dead / metrics.latents:.1%})",
        f"{metrics.dense_10} ({metrics.dense_10 / metrics.latents:.1%})",
        str(metrics.dense_50),
        f"{metrics.entropy_bits:.0f}",
        f"{result.losses.recovered:.1%}",
        f"{result.seconds:.0f}",
    )


def terminal_table(results: list[CoderResult]) -> str:
    """The comparison in columns of even width."""
    return aligned([COLUMNS, *(table_row(result) for result in results)])


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells, the first of them the header, in columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        first, *rest = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_metrics(results: list[CoderResult], run: dict[str, str], path: Path) -> None:
    """metrics.json: the run's settings, package versions, and each coder's figures unrounded."""
    packages = ("torch", "sae-lens", "transformers", "sae_binary_ext")
    document = {
        "run": run,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "coders": [
            {
                "name": result.name,
                "settings": result.settings,
                "latents": result.metrics.latents,
                "fvu": result.metrics.fvu,
                "explained_variance": result.metrics.explained_variance,
                "l0": result.metrics.l0,
                "dead": result.metrics.dead,
                "dense_10_percent": result.metrics.dense_10,
                "dense_50_percent": result.metrics.dense_50,
                "entropy_bits": result.metrics.entropy_bits,
                "cross_entropy_clean": result.losses.clean,
                "cross_entropy_zero_ablated": result.losses.ablated,
                "cross_entropy_spliced": result.losses.spliced,
                "cross_entropy_recovered": result.losses.recovered,
                "training_seconds": result.seconds,
                "training_fvu_by_step": result.fvu_by_step,
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(document, indent=1))


def write_report(results: list[CoderResult], run: dict[str, str], path: Path) -> None:
    """report.html: one file that needs no network, plots and their library included."""
    environment = Environment(loader=PackageLoader("sae_binary_ext.evaluation"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        columns=COLUMNS,
        rows=[table_row(result) for result in results],
        results=results,
        run=run,
        rates_plot=figure_html(
            rates_figure({result.name: result.metrics.rates for result in results}), library=True
        ),
        losses_plot=figure_html(_losses_figure(results), library=False),
    )
    path.write_text(page, encoding="utf-8")


def rates_figure(rates_of: dict[str, Tensor]) -> go.Figure:
    """Histograms of firing rates [latents] by coder, on a logarithmic axis."""
    edges = torch.logspace(
        LOWEST_RATE_EXPONENT, 0, -LOWEST_RATE_EXPONENT * BINS_PER_DECADE + 1, dtype=torch.float64
    )
    centres = (edges[:-1] * edges[1:]).sqrt()
    figure = go.Figure()
    for name, rates in rates_of.items():
        counts = torch.histogram(rates[rates > 0].clamp_max(1 - 1e-9), edges).hist
        figure.add_scatter(
            x=centres.tolist(), y=counts.tolist(), name=name, line_shape="hvh", mode="lines"
        )
    figure.update_xaxes(
        type="log",
        dtick=1,
        exponentformat="power",
        title="firing rate on held-out tokens (dead latents left out)",
    )
    figure.update_yaxes(title="latents")
    return figure


def _losses_figure(results: list[CoderResult]) -> go.Figure:
    figure = go.Figure()
    for result in results:
        curve = torch.tensor(result.fvu_by_step)
        # Means of equal stretches: a point a step would make the lines hide one another.
        stretches = curve.chunk(CURVE_POINTS)
        ends = torch.tensor([len(stretch) for stretch in stretches]).cumsum(0)
        figure.add_scatter(
            x=ends.tolist(),
            y=[stretch.mean().item() for stretch in stretches],
            name=result.name,
            mode="lines",
        )
    figure.update_xaxes(title="training step")
    figure.update_yaxes(type="log", title="FVU of the training batch")
    return figure


def figure_html(figure: go.Figure, *, library: bool) -> str:
    """A plot as a part of a page; with plotly's library in it, once a page."""
    figure.update_layout(
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=library,
        # Its buttons lie over the legend on a phone.
        config={"displayModeBar": False, "responsive": True},
    )
