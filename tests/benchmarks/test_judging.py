"""Latents of the first paper's grid are scored by a judge, and silenced in order of the scores."""

import json
import operator
import shutil
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaModel

from benchmarks.paper1 import cases, judging, scores_document, training
from benchmarks.paper1.cases import Case
from benchmarks.paper1.judging import Judge
from benchmarks.reconstruction.activations import Split
from benchmarks.result_lines import Line, ResultsFile
from sae_binary_ext.commands import AblateConfig, InterpretConfig
from tests.judge_server import JudgeServer, noise
from tests.small_models import VOCABULARY

LATENTS = 24
SEARCHED = [Case(1, "autoencoder", kind, 4, 0, 1.0) for kind in cases.KINDS]


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and activations of the MLP of layer 1, and no coders."""
    own = tmp_path_factory.mktemp("paper1")
    (own / "model").symlink_to(tiny_llama)
    model = LlamaModel.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    outputs: list[torch.Tensor] = []
    model.layers[1].mlp.register_forward_hook(lambda *given: outputs.append(given[2].detach()))
    model(torch.randint(2, VOCABULARY, (40, 12)))
    pairs = torch.cat([outputs[0]] * 2, -1).flatten(0, 1)
    split = {part.name: pairs.half().clone() for part in fields(Split)}
    save_file(split, own / "transcoder_1.safetensors")
    return own


@pytest.fixture
def small(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little text, and files of results in tmp_path; the grid is SEARCHED, of small coders."""
    monkeypatch.setattr(cases, "LATENTS", LATENTS)
    monkeypatch.setattr(training, "ROW", 12)
    amount: dict[str, Any] = {"dataset": str(tiny_dataset), "tokens": 3000, "context_size": 17}
    interpret = partial(InterpretConfig, **amount, window=8)
    monkeypatch.setattr(judging, "InterpretConfig", interpret)
    monkeypatch.setattr(judging, "AblateConfig", partial(AblateConfig, **amount))
    monkeypatch.setattr(judging, "RESULTS", ResultsFile(tmp_path / "results.jsonl"))
    monkeypatch.setattr(judging, "JUDGED", ResultsFile(tmp_path / "judged.jsonl"))
    for case in SEARCHED:
        judging.RESULTS.append(case.key())
    monkeypatch.setattr(judging, "grid", lambda *_: SEARCHED)
    monkeypatch.setattr(judging, "KS", (4,))
    monkeypatch.setattr(judging, "SILENCED_K", 4)


@pytest.mark.integration
@pytest.mark.usefixtures("small")
def test_each_coder_has_its_own_scores_and_its_own_loss(folder: Path):
    judging.judge_coders(folder, [1], Judge("tokens"))
    lines = judging.JUDGED.read()
    assert [line["kind"] for line in lines] == list(cases.KINDS)
    of_place = folder / "judged" / "autoencoder-1" / "k4-tokens"
    scores = [json.loads(line) for line in (of_place / "scores.jsonl").read_text().splitlines()[1:]]
    silenced = json.loads((of_place / "ablate.json").read_text())["results"]["groups"]
    for line, case in zip(lines, SEARCHED, strict=True):
        own = [each for each in scores if each["coder"] == f"{case.name}/{case.hookpoint}"]
        areas = [each["area"] for each in own if each["area"] is not None]
        assert (line["drawn"], line["scored"]) == (LATENTS, len(areas))
        assert line["area"]["value"] == pytest.approx(sum(areas) / len(areas))
        firings = [each["firings"] for each in own if each["area"] is not None]
        by_firings = sum(map(operator.mul, areas, firings)) / sum(firings)
        assert line["by_firings"]["value"] == pytest.approx(by_firings)
        assert [area for _, area in line["latents"]] == pytest.approx(areas, abs=1e-3)
        groups = [each for each in silenced if each["coder"] == own[0]["coder"]]
        losses = [group["loss"]["value"] for group in line["silenced"]]
        assert losses == [group["rise"]["loss"]["value"] for group in groups]
        assert any(losses)
        assert sum(group["ones"] for group in line["silenced"]) <= 1 + 1e-9
    # A coder whose file is lost is trained again, and those of the others are not written again.
    saved = [case.folder(folder) for case in SEARCHED]
    shutil.rmtree(saved[0])
    judging.JUDGED.path.write_text("")
    inodes = [path.stat().st_ino for path in saved[1:]]
    judging.judge_coders(folder, [1], Judge("tokens"))
    assert judging.JUDGED.read() == lines
    assert [path.stat().st_ino for path in saved[1:]] == inodes
    # One line is lost. Only its coder is judged again.
    judging.JUDGED.path.write_text("")
    for line in lines[:2]:
        judging.JUDGED.append(line)
    judging.judge_coders(folder, [1], Judge("tokens"))
    assert judging.JUDGED.read() == lines


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer(noise)
    server.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.integration
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["embedding", "model"])
def test_judges_of_delphi_score_each_coder(kind: str, folder: Path, server: JudgeServer):
    pytest.importorskip("delphi.scorers", reason="needs the package eai-delphi")
    judge = Judge(kind, server.base_url, "noise") if kind == "model" else Judge(kind)
    judging.judge_coders(folder, [1], judge)
    lines = judging.JUDGED.read()
    assert [(line["judge"], line["kind"]) for line in lines] == [
        (name, coder) for name in judge.names for coder in cases.KINDS
    ]
    file = folder / "judged" / "autoencoder-1" / f"k4-{kind}" / "scores.jsonl"
    scores = [json.loads(each) for each in file.read_text().splitlines()[1:]]
    for line in lines:
        own = [
            each[judge.measure]
            for each in scores
            if each["judge"] == line["judge"]
            and each["coder"].startswith(f"{line['kind']}-")
            and each["reason"] is None
        ]
        assert line["scored"] == len(own)
        assert line[judge.measure]["value"] == pytest.approx(sum(own) / len(own))
        assert line["silenced"] == []
    assert bool(server.asked) == (kind == "model")
    # Nothing is judged twice.
    file.unlink()
    judging.judge_coders(folder, [1], judge)
    assert judging.JUDGED.read() == lines


@pytest.mark.integration
@pytest.mark.usefixtures("small")
def test_the_model_is_read_once_for_the_coders_of_a_layer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    transcoder = Case(1, "transcoder", "topk", 4, 0, 1.0)
    judging.RESULTS.append(transcoder.key())
    monkeypatch.setattr(judging, "SILENCED_K", 0)
    monkeypatch.setattr(judging, "grid", lambda *_: [*SEARCHED, transcoder])
    shutil.rmtree(folder / "judged", ignore_errors=True)
    judging.judge_coders(folder, [1], Judge("tokens"))
    assert [line["form"] for line in judging.JUDGED.read()] == ["transcoder"] + ["autoencoder"] * 3
    files = (folder / "judged").rglob(judging.ACTIVATIONS)
    assert [file.parent.name for file in files] == ["transcoder-1"]


@pytest.mark.usefixtures("small")
def test_only_trained_coders_of_the_first_seed_are_judged(monkeypatch: pytest.MonkeyPatch):
    other_seed = Case(1, "autoencoder", "topk", 4, 1, 1.0)
    untrained = Case(1, "transcoder", "topk", 4, 0, 1.0)
    judging.RESULTS.append(other_seed.key())
    monkeypatch.setattr(judging, "grid", lambda *_: [*SEARCHED, other_seed, untrained])
    assert list(judging.places([1])) == [SEARCHED]
    assert list(judging.places([9])) == []


def line(kind: str, judge: str, **changes: Any) -> Line:
    estimate = {"value": 0.7, "interval": [0.6, 0.8]}
    case = Case(9, "autoencoder", kind, 32, 0, 1.0)
    group = {"latents": 5, "ones": 0.125, "loss": estimate, "random_ones": None}
    own = {
        "judge": judge,
        "drawn": 100,
        "scored": 90,
        "area": estimate,
        "by_firings": {"value": None, "interval": [None, None]},
        "latents": [[0.01, 0.7], [0.1, 0.5]],
        "silenced": [{**group, "random_loss": None}],
    }
    return {**case.key(), **own, **changes}


def test_tables_have_a_row_for_each_coder_and_group():
    lines = [line("topk", "tokens"), line("topk_binary", "tokens", silenced=[])]
    scores = scores_document.scores_table(lines).splitlines()
    assert scores[3] == (
        "| tokens | 9 | autoencoder | 32 | topk | 90 of 100 | 0.700 [0.600, 0.800] | none |"
    )
    assert len([row for row in scores if row.startswith("| tokens")]) == 2
    silenced = scores_document.silenced_table(lines)
    row = (
        "| 9 | autoencoder | 32 | topk | 1 of 8 | 5 | 12.5% | 0.700 [0.600, 0.800] | none | none |"
    )
    assert [each for each in silenced.splitlines() if "topk" in each] == [row]


def test_the_page_has_the_scores_that_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = scores_document.DOCUMENT
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    monkeypatch.setattr(scores_document, "DOCUMENT", copy)
    monkeypatch.setattr(scores_document, "PLOT", tmp_path / "plot.png")
    scores_document.write_scores(judging.JUDGED.read())
    assert copy.read_text() == page.read_text()
    lines = [line("topk", "tokens"), line("topk_binary", "embedding")]
    scores_document.write_scores(lines)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
