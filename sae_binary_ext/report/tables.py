"""Columns and tables of figures, for the terminal, for pages and for files."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar

from sae_binary_ext.measure.documents import CONFIDENCE, REPLICATES, Estimate

Value = str | int | float | Estimate | None
T = TypeVar("T", default=Any)
HOSTS = ("sae-lens", "eai-sparsify", "transformer-lens", "transformers", "eai-delphi")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table: it has one figure of each thing in the table.

    Attributes:
        label: head of the column; if empty, tables do not show the figure.
        meaning: explains the figure in a sentence, with its unit.
        form: format specification of the number, for example .2f.
        value: computes the figure of a thing. If None, the figure is the attribute named key.
        key: name of the figure in files; if empty, files do not have the figure.
    """

    label: str
    meaning: str = ""
    form: str = ""
    value: Callable[[T], Any] | None = None
    key: str = ""

    def of(self, thing: T) -> Any:
        """The figure of one thing."""
        return getattr(thing, self.key) if self.value is None else self.value(thing)


@dataclass(frozen=True)
class Table:
    """Figures of several things: a row for each thing, and a column for each figure.

    The caption says what was measured, and may be empty. The first column names the things. A
    value of None leaves a cell empty.
    """

    caption: str
    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Value]]

    def __str__(self) -> str:
        """The table for the terminal, intervals included."""
        rows = [tuple(column.label for column in self.columns)]
        for cells in self.for_page():
            rows.append(tuple(" ".join(filter(None, cell[:2])) for cell in cells))
        return f"{self.caption}\n\n{aligned(rows)}" if self.caption else aligned(rows)

    def without_intervals(self) -> str:
        """The table for the terminal, without intervals, for tables of many columns."""
        return str(replace(self, rows=[list(map(number_of, row)) for row in self.rows]))

    @property
    def heads(self) -> list[tuple[str, str]]:
        """Label and meaning of each column."""
        return [(column.label, column.meaning) for column in self.columns]

    def for_page(self) -> list[list[tuple[str, str, Value]]]:
        """Cells for a page; each has its text, its interval and the value to sort by."""
        forms = [column.form for column in self.columns]
        return [
            [(*shown(each, form), number_of(each)) for each, form in zip(row, forms, strict=True)]
            for row in self.rows
        ]


def with_meanings(columns: Iterable[Column[T]], meanings: Mapping[str, str]) -> list[Column[T]]:
    """Columns with their meanings, which are looked up by label, or by key if there is no label."""
    return [
        replace(column, meaning=meanings.get(column.label or column.key, column.meaning))
        for column in columns
    ]


def table_of(caption: str, columns: Sequence[Column[T]], things: Iterable[T]) -> Table:
    """A table of the columns that have a label, with one row for each thing."""
    labelled = [column for column in columns if column.label]
    return Table(caption, labelled, [[each.of(thing) for each in labelled] for thing in things])


def described(columns: Sequence[Column[T]], things: Iterable[T]) -> list[dict[str, Any]]:
    """Figures of the columns that have a key: one dictionary for each thing, for a file."""
    keyed = [column for column in columns if column.key]
    return [{column.key: column.of(thing) for column in keyed} for thing in things]


def number_of(value: Any) -> Any:
    """The value of an estimate; any other value is returned unchanged."""
    return value.value if isinstance(value, Estimate) else value


def shown(value: Value, form: str = "") -> tuple[str, str]:
    """A value and its interval, both as text. Without a value or interval, the text is empty."""
    if isinstance(value, str):
        return value, ""
    number = number_of(value)
    if number is None:
        return "", ""
    # An undefined figure is shown as "nan", because an empty cell means that there is no figure.
    text = format(number, form) if math.isfinite(number) else str(float(number))
    if isinstance(value, Estimate) and math.isfinite(value.low) and math.isfinite(value.high):
        return text, f"[{format(value.low, form)}, {format(value.high, form)}]"
    return text, ""


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells in columns of even width; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    head, *others = (line.format(*row) for row in rows)
    return "\n".join([head, "-" * len(head), *others])


def as_json(value: Any) -> Any:
    """Convert figures for JSON: an estimate becomes value and interval, NaN becomes null."""
    if isinstance(value, Estimate):
        return as_json({"value": value.value, "interval": [value.low, value.high]})
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figures(
    path: Path, schema_version: int, run: Mapping[str, Any], resampled: str, **figures: Any
) -> None:
    """Write figures of coders as JSON, with the command's settings and further keys.

    `schema_version` is the version of the keys. `resampled` is what the bootstrap resamples.
    """
    document = {
        "schema_version": schema_version,
        "run": run,
        "versions": versions(),
        "intervals": {"confidence": CONFIDENCE, "replicates": REPLICATES, "of": resampled},
    }
    path.write_text(json.dumps(document | figures, indent=1, allow_nan=False))


def versions() -> dict[str, str]:
    """Versions of this package, of torch, and of the hosts that are installed."""
    found: dict[str, str] = {}
    for name in ("sae_binary_ext", "torch", *HOSTS):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
