"""The results of a command: tables for the terminal, a JSON file and a page."""

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import plotly.graph_objects as go

from sae_binary_ext.measure.reading import OpenedModel, open_coders, open_model_alone, settings_of
from sae_binary_ext.report.plots import write_page
from sae_binary_ext.report.tables import (
    Column,
    Table,
    as_json,
    described,
    table_of,
    versions,
    with_meanings,
)
from sae_binary_ext.settings import ReadingConfig

SCHEMA_VERSION = 1
T = TypeVar("T")
Config = TypeVar("Config", bound=ReadingConfig)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Analysis:
    """Results of a command. Its files are named after the command.

    The page shows the title, remarks, tables and plots. Remarks are paragraphs that say what the
    figures mean, and what they do not mean. The JSON file has the unrounded results.
    """

    command: str
    title: str
    remarks: Sequence[str]
    tables: Sequence[Table]
    figures: Mapping[str, go.Figure]
    results: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The tables for the terminal, intervals included."""
        return "\n\n".join(map(str, self.tables))


def analyse_coders(
    coders: list[str],
    config: Config,
    measure: Callable[[OpenedModel, Config], Found],
    page: Callable[[Found, Config], Analysis],
) -> Analysis:
    """Open coders with their model, measure them, and write the results to config.output.

    `coders` are folders of one coder or of several coders, or Hub ids of either. Errors are those
    of open_coders. `measure` reads the text, and `page` makes tables, plots and remarks.
    """
    return analyse_model(config, measure, page, open_coders(coders, config, config.output))


def analyse_model(
    config: Config,
    measure: Callable[[OpenedModel, Config], Found],
    page: Callable[[Found, Config], Analysis],
    opened: OpenedModel | None = None,
) -> Analysis:
    """Do the same as analyse_coders for an opened model, or (if None) a model without coders."""
    opened = opened or open_model_alone(config, config.output)
    analysis = page(measure(opened, config), config)
    write_analysis(analysis, settings_of(opened, config), config.output)
    return analysis


def analysis_of(
    page: str | Path,
    columns: Sequence[Column[T]],
    things: Iterable[T],
    figures: Mapping[str, go.Figure],
    results: Mapping[str, Any] | str,
    **settings: Any,
) -> Analysis:
    """Make an analysis with one table, which has a row for each thing.

    Args:
        page: the TOML file with the page's title, the table's caption, remarks in paragraphs, and
            the meaning of each column by its label. For another file, page.toml in its folder.
        columns: columns of the table; a column without a label is only for files.
        things: the things that the table measures, one for each row.
        figures: plots, by title.
        results: figures for the JSON file, or the key under which the file has the columns'
            figures.
        settings: values for the fields in title and caption, for example {change}.
    """
    texts = Path(page)
    texts = texts if texts.suffix == ".toml" else texts.with_name("page.toml")
    found = tomllib.loads(texts.read_text(encoding="utf-8"))
    things = list(things)
    results = {results: described(columns, things)} if isinstance(results, str) else results
    caption = found["caption"].format(**settings)
    table = table_of(caption, with_meanings(columns, found["columns"]), things)
    remarks = [" ".join(each.split()) for each in found["remarks"].split("\n\n")]
    command, title = texts.parent.name.replace("_", "-"), found["title"].format(**settings)
    return Analysis(command, title, remarks, [table], figures, results)


def write_analysis(analysis: Analysis, run: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write COMMAND.json and COMMAND.html, with the command's settings; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = (folder / f"{analysis.command}.{ending}" for ending in ("json", "html"))
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": analysis.command,
        "run": dict(run),
        "versions": versions(),
        "results": as_json(analysis.results),
    }
    data.write_text(json.dumps(document, indent=1, allow_nan=False))
    shown = {"title": analysis.title, "remarks": analysis.remarks, "tables": analysis.tables}
    write_page(page, "analysis.html.j2", {"": analysis.figures}, run=run, **shown)
    return [data, page]
