"""Shows scores as interpretation.json, as a table, and as a section of a comparison's report."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.interpret.interpret_scores import (
    BANDS,
    MEASURES,
    ULTRA_HIGH,
    CoderScores,
    LatentScore,
)
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import tables
from sae_binary_ext.report.plots import grouped
from sae_binary_ext.report.tables import Column

SCHEMA_VERSION = 1
FILE = "interpretation.json"
Entry = dict[str, Any]


def _figure(kind: str, measure: str) -> Column[Entry]:
    label = "F1" if measure == "f1" else measure
    label += " by firings" if kind == "firing_weighted" else ""
    return Column(label, form=".2f", value=lambda entry: _estimate(entry[kind][measure]))


TEXTS = tomllib.loads(Path(__file__).with_name("page.toml").read_text(encoding="utf-8"))
# Columns of the table; each row is an entry of interpretation.json, for one coder and judge.
COLUMNS: list[Column[Entry]] = tables.with_meanings(
    (
        Column("coder", value=lambda entry: entry["name"]),
        Column("judge", value=lambda entry: entry["judge"]),
        Column("scored", value=lambda entry: f"{entry['scored']}/{entry['drawn']}"),
        *(_figure("mean", measure) for measure in MEASURES),
        _figure("firing_weighted", "f1"),
        Column("failed answers", form="d", value=lambda entry: entry["failed_answers"]),
    ),
    TEXTS["columns"],
)
SCORED = [column.label for column in COLUMNS].index("scored")


def _estimate(figure: Entry) -> Estimate | None:
    if figure["value"] is None:
        return None
    low, high = (float("nan") if end is None else end for end in figure["interval"])
    return Estimate(figure["value"], low, high)


def by_coder_and_judge(scores: Iterable[LatentScore]) -> list[CoderScores]:
    """Group scores by coder and judge. Scores of different judges are never averaged."""
    groups = grouped(scores, lambda score: (score.coder, score.judge))
    return [CoderScores(*key, group) for key, group in groups.items()]


def write_interpretation(
    found: list[CoderScores], run: dict[str, Any], folder: Path
) -> tables.Table:
    """Write interpretation.json (docs/interpret.md has the keys), with the command's settings.

    Returns the table for the terminal, with one row for each coder and judge.
    """
    entries = [_described(each) for each in found]
    tables.write_figures(folder / FILE, SCHEMA_VERSION, run, "latents", coders=entries)
    return tables.table_of("", COLUMNS, entries)


def _described(found: CoderScores) -> Entry:
    entry = {
        "name": found.coder,
        "judge": found.judge,
        "drawn": found.drawn(),
        "scored": found.scored(),
        "not_scored": found.reasons(),
        "failed_answers": found.failed(),
        "mean": {measure: found.mean(measure) for measure in MEASURES},
        "firing_weighted": {measure: found.firing_weighted(measure) for measure in MEASURES},
        "bands": {
            band: {"drawn": found.drawn(band), "scored": found.scored(band)}
            | {measure: found.mean(measure, band) for measure in MEASURES}
            for band in [*(name for name, _ in BANDS), ULTRA_HIGH]
        },
    }
    return tables.as_json(entry)


@dataclass(frozen=True)
class Interpretability:
    """The part of interpretation.json that a report shows, and a plot of scores by firing rate.

    `columns` has labels with meanings. Each cell in `rows` has a text, an interval and a value to
    sort by.
    """

    columns: list[tuple[str, str]]
    rows: list[list[tuple[str, str, tables.Value]]]
    plot: go.Figure


def read_interpretability(folder: Path, coders: Iterable[str]) -> Interpretability:
    """Read the scores of these coders that `sae-binary interpret` wrote to a folder.

    ValueError if the folder has no scores of these coders, or a file of another version.
    """
    path, field = folder / FILE, f"interpretation={folder}"
    if not path.is_file():
        raise ValueError(f"{field}: holds no {FILE}. Run sae-binary interpret first.")
    document = json.loads(path.read_text())
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"{field}: {FILE} has schema_version {version}, not {SCHEMA_VERSION}. Run sae-binary "
            "interpret again."
        )
    names = list(coders)
    found = [entry for entry in document["coders"] if entry["name"] in names]
    if not found:
        scored = sorted({entry["name"] for entry in document["coders"]})
        raise ValueError(
            f"{field}: has scores of {scored}, not of {names}. Leave it out, or run sae-binary "
            "interpret on these coders."
        )
    table = tables.table_of("", COLUMNS, found)
    rows = table.for_page()
    for row, entry in zip(rows, found, strict=True):
        reasons = ", ".join(f"{number} {reason}" for reason, number in entry["not_scored"].items())
        row[SCORED] = (row[SCORED][0], reasons, entry["scored"])
    return Interpretability(table.heads, rows, _by_rate(found))


def _by_rate(entries: list[Entry]) -> go.Figure:
    """Bars of each coder's mean score in each band of firing rates; judges are side by side."""
    figure = go.Figure()
    for coder, own in grouped(entries, lambda entry: entry["name"]).items():
        bars: list[tuple[str, str, float]] = []
        for entry in own:
            # Show F1 if the judge has it, or else the area.
            measure, name = ("f1", "F1")
            if entry["mean"]["f1"]["value"] is None:
                measure = name = "area"
            for band, of_band in entry["bands"].items():
                if (value := of_band[measure]["value"]) is not None:
                    bars.append((f"{entry['judge']}: {name}", band, value))
        labels, bands, values = ([bar[place] for bar in bars] for place in range(3))
        figure.add_bar(x=[labels, bands], y=values, name=coder)
    figure.update_xaxes(title="firing rate")
    return figure.update_yaxes(title="mean score", rangemode="tozero")
