"""The texts of the commands' pages, in page.toml."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import sae_binary_ext.commands
from sae_binary_ext.report.columns import COLUMNS

ROOMS = sorted(Path(sae_binary_ext.commands.__path__[0]).glob("*/page.toml"))


@pytest.mark.parametrize("texts", ROOMS, ids=lambda texts: texts.parent.name)
def test_each_number_of_a_page_is_explained_and_nothing_else(texts: Path):
    room = texts.parent.name
    page = import_module(f"sae_binary_ext.commands.{room}.{room}_page")
    shown = [column for column in page.COLUMNS if column.label]
    meanings = tomllib.loads(texts.read_text())["columns"]
    assert set(meanings) <= {column.label for column in shown}
    assert [each.label for each in shown if each.form and each.label not in meanings] == []


def test_there_are_pages():
    assert len(ROOMS) >= 8


def test_each_figure_of_a_comparison_is_explained():
    assert [column.key for column in COLUMNS if not column.meaning.endswith(".")] == []
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)
