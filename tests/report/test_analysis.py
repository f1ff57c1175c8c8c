"""The results of an analysis are shown as terminal text, JSON and a page."""

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest

from sae_binary_ext.measure.documents import Estimate
from sae_binary_ext.report import Analysis, Column, Table, write_analysis

NAN = float("nan")
ROWS = [["one", Estimate(0.5, 0.25, 0.75), 3, None], ["<b>other", Estimate(2.0, NAN, NAN), 4, NAN]]


@pytest.fixture
def analysis() -> Analysis:
    columns = [Column("coder"), Column("bits", "In bits.", ".2f"), Column("k"), Column("nothing")]
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[3, 4], name="line")
    return Analysis(
        "entropy",
        "Entropy of codes",
        ["What it means.", "What it does not."],
        [Table("Of two coders", columns, ROWS)],
        {"First": figure, "Second": go.Figure(figure)},
        {"coders": [{"name": "one", "bits": Estimate(0.5, 0.25, NAN), "rates": (0.1, NAN)}]},
    )


def test_the_terminal_shows_intervals_where_there_are_any(analysis: Analysis):
    lines = str(analysis).splitlines()
    assert lines[0] == "Of two coders"
    assert lines[2].split() == ["coder", "bits", "k", "nothing"]
    assert lines[4].split() == ["one", "0.50", "[0.25,", "0.75]", "3"]
    assert lines[5].split() == ["<b>other", "2.00", "4", "nan"]


def test_json_holds_settings_versions_and_results_and_no_nan(analysis: Analysis, tmp_path: Path):
    run = {"model": "of the coders", "tokens": "5"}
    data, page = write_analysis(analysis, run, tmp_path / "new")
    document = json.loads(data.read_text())
    assert data.name == "entropy.json"
    assert page.name == "entropy.html"
    assert document["command"] == "entropy"
    assert document["run"] == run
    assert "torch" in document["versions"]
    (coder,) = document["results"]["coders"]
    assert coder["bits"] == {"value": 0.5, "interval": [0.25, None]}
    assert coder["rates"] == [0.1, None]


def test_the_page_is_whole_and_has_the_library_once(analysis: Analysis, tmp_path: Path):
    _, page = write_analysis(analysis, {"model": "tiny"}, tmp_path)
    text = page.read_text()
    assert text.count("plotly.js v") == 1
    for part in ("What it does not.", "[0.25, 0.75]", "In bits.", "&lt;b&gt;other", "tiny"):
        assert part in text
    assert "<b>other" not in text
