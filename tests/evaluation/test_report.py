import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_binary_ext.evaluation.contexts import Context, LatentContexts
from sae_binary_ext.evaluation.metrics import CoderMetrics
from sae_binary_ext.evaluation.report import (
    COLUMNS,
    CoderResult,
    terminal_table,
    write_metrics,
    write_report,
)
from sae_binary_ext.saelens.splice import SplicedLosses


@pytest.fixture
def results() -> list[CoderResult]:
    rates = torch.tensor([0.0, 0.25, 1.0, 1e-4], dtype=torch.float64)
    metrics = CoderMetrics(0.125, 1.25, 4, 1, 2, 1, 0.8, rates)
    latent = LatentContexts(7, 0.25, [Context([("plain", False), (" <b>hit</b>", True)])])
    return [
        CoderResult(
            name=name,
            settings={"architecture": "binary", "lr": "0.003"},
            metrics=metrics,
            losses=SplicedLosses(clean=2.0, ablated=6.0, spliced=3.0),
            seconds=61.4,
            fvu_by_step=[1.0, 0.5, 0.25],
            latents=[latent],
        )
        for name in ("first", "second")
    ]


def test_the_table_has_every_column_and_figure(results: list[CoderResult]):
    header, _, first, second = terminal_table(results).splitlines()
    assert all(column in header for column in COLUMNS)
    figures = ["0.125", "0.875", "1.2", "1 (25.0%)", "2 (50.0%)", "75.0%", "61"]
    assert all(figure in first for figure in figures)
    assert first.startswith("first")
    assert len(header) == len(first) == len(second)


def test_metrics_are_unrounded_and_say_what_was_run(results: list[CoderResult], tmp_path: Path):
    write_metrics(results, {"model": "some model"}, tmp_path / "metrics.json")
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["run"] == {"model": "some model"}
    assert set(document["versions"]) >= {"torch", "sae-lens"}
    coder = document["coders"][0]
    assert coder["fvu"] == 0.125
    assert coder["cross_entropy_recovered"] == 0.75
    assert coder["training_fvu_by_step"] == [1.0, 0.5, 0.25]


class Page(HTMLParser):
    """Collects marked text, table cells and anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[str] = []
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        named: dict[str, Any] = dict(attrs)
        if tag in ("script", "img", "link") and (source := named.get("src") or named.get("href")):
            self.fetched.append(source)

    def handle_data(self, data: str) -> None:
        if self._tag == "mark":
            self.marked.append(data)
        if self._tag == "td":
            self.cells.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def test_the_report_is_one_file_with_figures_plots_and_escaped_text(
    results: list[CoderResult], tmp_path: Path
):
    write_report(results, {"model": "some model"}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert page.marked == [" <b>hit</b>"] * 2
    assert "0.125" in page.cells
    assert text.count("plotly-graph-div") == 2
    assert '"type":"log"' in text
