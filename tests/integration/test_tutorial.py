"""docs/tutorial.ipynb runs from its first cell to its last, on the real model and text."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.documents import ROOT

pytestmark = pytest.mark.integration

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
FIGURES = """
import json
labelled = labels[labels.tokens >= 4].head(8)
print(json.dumps({
    "values": coder.encode(states_test).unique().tolist(),
    "fvu": figures.fvu,
    "rate": labelled.rate.tolist(),
    "precision": labelled.precision.tolist(),
    "recall": labelled.recall.tolist(),
    "answers": answer.count,
    "rule": rule["precision"].value,
    "base": rule["labelled"] / rule["rows"],
    "changed": on,
}))
"""


def test_the_tutorial_labels_latents(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    # The tutorial's first cell would make this folder.
    shutil.copytree(smollm2_folder, tmp_path / "runs" / "tutorial" / "model")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FIGURES))
    # If a cell fails, execute() raises its error.
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    figures = json.loads(notebook.cells[-1].outputs[0].text)
    assert figures["values"] == [0.0, 1.0]
    assert figures["fvu"] < 0.6
    found = zip(figures["rate"], figures["precision"], figures["recall"], strict=True)
    good = [precision > 10 * rate and recall > 0.4 for rate, precision, recall in found]
    # Two labels may fail: the tutorial says that a label may hold only in the articles read.
    assert len(good) == 8
    assert sum(good) >= 6
    # The index and the rule are of the same text as the table.
    assert figures["answers"] > 0
    assert figures["rule"] > 3 * figures["base"]
    assert figures["changed"]


def test_the_tutorial_shows_no_path_and_no_error():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert all(cell.outputs for cell in cells if "print(" in cell.source)
