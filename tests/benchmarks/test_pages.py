"""The pages of benchmarks have the tables of the results that are saved beside the benchmarks."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["finetuning", "paper1", "paper2", "synthetic"])
def test_a_page_has_the_results(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    document = import_module(f"benchmarks.{name}.document")
    results = import_module(f"benchmarks.{name}.results")
    page = document.DOCUMENT
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    monkeypatch.setattr(document, "DOCUMENT", copy)
    document.write_document(results.RESULTS.read())
    assert copy.read_text() == page.read_text()
