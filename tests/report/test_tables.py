"""Checks columns, tables and curves, and the texts of the commands' pages."""

import math
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import sae_binary_ext.commands
from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import Column, Table, described, table_of
from sae_binary_ext.report.comparison_files import COLUMNS
from sae_binary_ext.report.plots import curves
from sae_binary_ext.report.tables import as_json, shown, with_meanings

BITS = Estimate(2.0, 1.0, 3.0)
# A room's page has its texts in page.toml. Another page NAME_page has them in NAME.toml.
PAGES = sorted(Path(sae_binary_ext.commands.__path__[0]).glob("*/*.toml"))


@pytest.mark.parametrize("texts", PAGES, ids=lambda texts: f"{texts.parent.name}-{texts.stem}")
def test_each_number_of_a_page_is_explained_and_nothing_else(texts: Path):
    room = texts.parent.name
    name = room if texts.stem == "page" else texts.stem
    page = import_module(f"sae_binary_ext.commands.{room}.{name}_page")
    shown = [column for column in page.COLUMNS if column.label]
    meanings = tomllib.loads(texts.read_text())["columns"]
    assert set(meanings) <= {column.label for column in shown}
    assert [each.label for each in shown if each.form and each.label not in meanings] == []


def test_there_are_pages():
    assert len(PAGES) >= 8


def test_each_figure_of_a_comparison_is_explained():
    assert [column.key for column in COLUMNS if not column.meaning.endswith(".")] == []
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


def test_a_column_is_for_tables_or_files_or_both():
    columns: list[Column[str]] = [
        Column("word", value=lambda word: word),
        Column("letters", form="d", value=len, key="length"),
        Column("", value=str.isupper, key="upper"),
    ]
    table = table_of("Words", with_meanings(columns, {"letters": "How many."}), ["ab", "C"])
    assert [column.label for column in table.columns] == ["word", "letters"]
    assert table.heads[1] == ("letters", "How many.")
    assert table.rows == [["ab", 2], ["C", 1]]
    assert described(columns, ["ab", "C"]) == [
        {"length": 2, "upper": False},
        {"length": 1, "upper": True},
    ]


def test_a_table_for_the_terminal_may_leave_intervals_out():
    table = Table("Bits", [Column("coder"), Column("bits", form=".1f")], [["a", BITS]])
    assert str(table).splitlines()[-1] == "a      2.0 [1.0, 3.0]"
    assert table.without_intervals().splitlines()[-1] == "a       2.0"
    assert table.for_page() == [[("a", "", "a"), ("2.0", "[1.0, 3.0]", 2.0)]]


@pytest.mark.parametrize(("value", "cell"), [(None, ""), (math.nan, "nan"), (math.inf, "inf")])
def test_a_missing_figure_leaves_a_cell_empty_and_an_undefined_one_says_so(
    value: float | None, cell: str
):
    assert shown(value, ".1f") == (cell, "")
    assert as_json({"x": (value,)}) == {"x": [None]}


def test_curves_have_error_bars_and_texts_and_leave_missing_points_out():
    figure = curves(
        {"a": [(1, BITS, "one")], "b": [(1, 2.0), (2, None)], "c": [(1, None)]}, "x", "y"
    )
    first, second = figure.data
    assert (first.name, first.text, first.error_y.array) == ("a", ("one",), (1.0,))
    assert (second.name, second.x, second.y) == ("b", (1,), (2.0,))
