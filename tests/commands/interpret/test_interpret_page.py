import json
from dataclasses import replace
from pathlib import Path

import pytest

from sae_binary_ext.commands.interpret.interpret_page import (
    COLUMNS,
    by_coder_and_judge,
    read_interpretability,
    write_interpretation,
)
from tests.commands.interpret.test_interpret_scores import SCORES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    others = [replace(score, coder="other", judge="tokens", f1=None, area=0.8) for score in SCORES]
    write_interpretation(by_coder_and_judge([*SCORES, *others]), {}, tmp_path)
    return tmp_path


def test_each_coder_and_judge_is_a_row(folder: Path):
    found = read_interpretability(folder, ["other", "coder", "third"])
    one, two = found.rows
    assert len(one) == len(two) == len(COLUMNS)
    assert [cell[0] for cell in one] == ["coder", "rule", "4/6", "", "0.50", "0.47", "0.38", "70"]
    assert one[2][1] == "1 dead, 1 answers failed"
    assert one[5][1].startswith("[")
    assert one[5][2] == pytest.approx(1.9 / 4)
    assert [cell[0] for cell in two][3:6] == ["0.80", "0.50", ""]
    first, second = found.plot.data
    assert (first.name, second.name) == ("coder", "other")
    assert list(first.x[0]) == ["rule: F1"] * 4
    assert list(first.y) == [0.5, 1.0, 0.0, 0.4]
    assert list(second.x[0]) == ["tokens: area"] * 4
    assert len(read_interpretability(folder, ["other"]).rows) == 1


def test_what_is_no_such_run_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no interpretation\.json"):
        read_interpretability(tmp_path / "elsewhere", ["coder"])
    with pytest.raises(ValueError, match=r"has scores of \['coder', 'other'\], not of \['third'\]"):
        read_interpretability(folder, ["third"])
    path = folder / "interpretation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema_version 0, not 1"):
        read_interpretability(folder, ["coder"])
