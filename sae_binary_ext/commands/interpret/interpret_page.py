"""The scores of an earlier run, as a section of a comparison's report."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.interpret.score_files import SCHEMA_VERSION, shown
from sae_binary_ext.measure.documents import Estimate

FILE = "interpretation.json"
# What each column is called, and means.
COLUMNS = (
    ("coder", ""),
    ("judge", "Who was asked."),
    ("scored", "Latents with a score, of those drawn."),
    ("area", "Area under the ROC curve."),
    ("accuracy", "Share of right answers, half of the windows being active ones."),
    ("F1", "Of the answers that a window is active."),
    ("F1 by firings", "Mean in which each latent counts as often as it fires."),
    ("failed answers", "Answers that did not come or could not be read; they are in no score."),
)
# What is shown, its interval, and what it is sorted by.
Cell = tuple[str, str, float | str]


@dataclass(frozen=True)
class Interpretability:
    """What a report shows of interpretation.json.

    Attributes:
        rows: of each coder and judge, a cell for each of COLUMNS.
        plot: scores by firing rate.
    """

    rows: list[list[Cell]]
    plot: go.Figure
    columns: tuple[tuple[str, str], ...] = COLUMNS


def read_interpretability(folder: Path, coders: Iterable[str]) -> Interpretability:
    """What `sae-binary interpret` found of coders.

    Args:
        folder: its output.
        coders: names of those compared; of others nothing is shown.

    Raises:
        ValueError: there is no such run, one of another version, or one of other coders.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"interpretation={folder}: holds no {FILE}. Run sae-binary interpret first."
        )
    document = json.loads(path.read_text())
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"interpretation={folder}: {FILE} has schema_version {version}, not {SCHEMA_VERSION}. "
            "Run sae-binary interpret again."
        )
    names = list(coders)
    found = [entry for entry in document["coders"] if entry["name"] in names]
    if not found:
        scored = sorted({entry["name"] for entry in document["coders"]})
        raise ValueError(
            f"interpretation={folder}: is of {scored}, and not of {names}. Leave it out, or run "
            "sae-binary interpret on these coders."
        )
    return Interpretability([_row(entry) for entry in found], _by_rate(found))


def _row(entry: dict[str, Any]) -> list[Cell]:
    means = [entry["mean"][measure] for measure in ("area", "accuracy", "f1")]
    figures = [_cell(figure) for figure in [*means, entry["firing_weighted"]["f1"]]]
    scored = f"{entry['scored']}/{entry['drawn']}"
    failed = entry["failed_answers"]
    return [
        (entry["name"], "", entry["name"]),
        (entry["judge"], "", entry["judge"]),
        (scored, _reasons(entry), entry["scored"]),
        *figures,
        (str(failed), "", failed),
    ]


def _reasons(entry: dict[str, Any]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in entry["not_scored"].items())


def _cell(figure: dict[str, Any]) -> Cell:
    text, _, interval = shown(_estimate(figure)).partition(" ")
    value = figure["value"]
    return text, interval, float("-inf") if value is None else value


def _estimate(figure: dict[str, Any]) -> Estimate:
    ends = [float("nan") if end is None else end for end in (figure["value"], *figure["interval"])]
    return Estimate(*ends)


def _by_rate(entries: list[dict[str, Any]]) -> go.Figure:
    """Of each coder its mean in each band of firing rates, judges side by side."""
    figure = go.Figure()
    for coder in dict.fromkeys(entry["name"] for entry in entries):
        bars = [bar for entry in entries if entry["name"] == coder for bar in _bars(entry)]
        labels, bands, values = ([bar[place] for bar in bars] for place in range(3))
        figure.add_bar(x=[labels, bands], y=values, name=coder)
    figure.update_xaxes(title="firing rate")
    figure.update_yaxes(title="mean score", rangemode="tozero")
    return figure


def _bars(entry: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Judge and measure, band of firing rates, and mean: of F1, where the judge has it."""
    measure, name = ("area", "area") if entry["mean"]["f1"]["value"] is None else ("f1", "F1")
    return [
        (f"{entry['judge']}: {name}", band, of_band[measure]["value"])
        for band, of_band in entry["bands"].items()
        if of_band[measure]["value"] is not None
    ]
