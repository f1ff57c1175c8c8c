"""What an analysis found, as a table for the terminal, a JSON file and a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report.comparison_files import aligned, finite, versions
from sae_binary_ext.report.plots import plot_html

SCHEMA_VERSION = 1
Value = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: at its head.
        meaning: in a sentence, with its unit.
        form: how numbers are shown, for format().
    """

    label: str
    meaning: str = ""
    form: str = ""


@dataclass(frozen=True)
class Table:
    """Figures of several things.

    Attributes:
        caption: what it is of.
        columns: the first one names the things.
        rows: of each a value for each column; None where there is none.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]


@dataclass(frozen=True)
class Analysis:
    """What a command found.

    Attributes:
        command: its name, and that of its files.
        title: of its page.
        remarks: paragraphs: what the figures mean, and what they do not.
        tables: for terminal and page.
        figures: plots, by title.
        results: the same figures and more, unrounded, for the JSON file.
    """

    command: str
    title: str
    remarks: Sequence[str]
    tables: Sequence[Table]
    figures: Mapping[str, go.Figure]
    results: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The tables for the terminal, intervals included."""
        return "\n\n".join(
            f"{table.caption}\n\n{aligned(_text_rows(table))}" for table in self.tables
        )


def write_analysis(analysis: Analysis, run: Mapping[str, Any], folder: Path) -> list[Path]:
    """COMMAND.json and COMMAND.html, which needs no network.

    Args:
        analysis: what was found.
        run: the command's settings.
        folder: where the files go; made where there is none.

    Returns:
        Both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": analysis.command,
        "run": dict(run),
        "versions": versions(),
        "results": _plain(analysis.results),
    }
    data, page = (folder / f"{analysis.command}.{ending}" for ending in ("json", "html"))
    data.write_text(json.dumps(document, indent=1, allow_nan=False))
    environment = Environment(loader=PackageLoader("sae_binary_ext.report"), autoescape=True)
    plots = {
        title: Markup(plot_html(figure, library=place == 0))
        for place, (title, figure) in enumerate(analysis.figures.items())
    }
    text = environment.get_template("analysis.html.j2").render(
        analysis=analysis,
        tables=[_for_page(table) for table in analysis.tables],
        plots=plots,
        run=run,
    )
    page.write_text(text, encoding="utf-8")
    return [data, page]


def _shown(value: Value, form: str) -> tuple[str, str]:
    """A value and its interval; nothing where it is not a number."""
    if isinstance(value, str):
        return value, ""
    number = value.value if isinstance(value, Estimate) else value
    if number is None or finite(number) is None:
        return "", ""
    text = format(number, form)
    if not isinstance(value, Estimate) or None in (finite(value.low), finite(value.high)):
        return text, ""
    return text, f"[{format(value.low, form)}, {format(value.high, form)}]"


def _text_rows(table: Table) -> list[tuple[str, ...]]:
    header = tuple(column.label for column in table.columns)
    rows = [
        tuple(
            " ".join(filter(None, _shown(value, column.form)))
            for value, column in zip(row, table.columns, strict=True)
        )
        for row in table.rows
    ]
    return [header, *rows]


def _for_page(table: Table) -> dict[str, Any]:
    rows = [
        [
            (*_shown(value, column.form), value.value if isinstance(value, Estimate) else value)
            for value, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    columns = [(column.label, column.meaning) for column in table.columns]
    return {"caption": table.caption, "columns": columns, "rows": rows}


def _plain(value: Any) -> Any:
    """What JSON can hold: estimates as value and interval, null for what is no number."""
    if isinstance(value, Estimate):
        return {"value": finite(value.value), "interval": [finite(value.low), finite(value.high)]}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return finite(value) if isinstance(value, float) else value
