"""Indexes have the codes of the coder; runs stop, go on and take new text; searches find it."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sae_binary_ext.cli import main
from sae_binary_ext.commands import CodeIndex, IndexConfig, latents_of_prompt, run_index
from sae_binary_ext.commands.index import index_run
from sae_binary_ext.commands.index.index_folder import IndexFolder
from sae_binary_ext.commands.search.bitmaps import numbers_of
from sae_binary_ext.measure.candidates import OpenedModel, ReadBatch
from sae_binary_ext.measure.reading import open_coders, read_text
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, LATENTS, save_coders

pytestmark = pytest.mark.integration
TOKENS = 1500


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Folder with the coders "binary" and "stock", and a smaller norm limit's text."""
    folder = tmp_path_factory.mktemp("coders")
    save_coders(folder, tiny_model_folder)
    return folder


def config_of(model: Path, dataset: Path, **changes: Any) -> IndexConfig:
    settings: dict[str, Any] = {"tokens": TOKENS, "context_size": CONTEXT, "norm_limit": 1.2}
    return IndexConfig(str(model), str(dataset), **settings | changes)


def codes_in(out: Path) -> np.ndarray:
    """Codes of an index, bool [tokens with a code, latents]."""
    index = CodeIndex.open(out)
    codes = np.zeros((index.folder.tokens, LATENTS), np.bool_)
    for latent in range(LATENTS):
        codes[numbers_of(index.fires_on(latent)), latent] = True
    return codes[numbers_of(index.query("0 | !0").units)]


@pytest.mark.parametrize("name", ["binary", "stock"])
def test_an_index_has_the_codes_of_the_coder(
    name: str, coders: Path, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    config = config_of(tiny_model_folder, tiny_dataset)
    folder = run_index(tmp_path / "out", str(coders / name), config)
    opened = open_coders([str(coders / name)], config, tmp_path)
    (candidate,), (hooks,) = opened.candidates, opened.hooks.values()
    batches = list(read_text(opened, config))
    codes = torch.cat([batch.codes(candidate.coder, hooks[0]) != 0 for batch in batches])
    assert np.array_equal(codes_in(tmp_path / "out"), codes.numpy())
    # Tokens of outlying norm have no code, but their text is there; the first of a row has neither.
    left_out = opened.outliers.left_out
    assert 0 < left_out == folder.firings[-1]
    assert folder.tokens == len(codes) + left_out
    ids = torch.cat([batch.text.tokens[batch.text.positions(1)] for batch in batches])
    assert np.array_equal(np.concatenate([e.token_ids for e in folder.segments]), ids.numpy())
    assert folder.header.has_values == (name == "stock")
    assert ("stock coder" in str(folder)) == (name == "stock")


@pytest.fixture
def few_in_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_run, "FIRINGS_IN_SEGMENT", 1000)


@pytest.mark.usefixtures("few_in_segment")
def test_a_stopped_run_goes_on_to_the_same_answers(
    coders: Path,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    arguments = [str(coders / "binary"), "--model", str(tiny_model_folder), "--tokens", str(TOKENS)]
    arguments += ["--dataset", str(tiny_dataset), "--context_size", str(CONTEXT)]
    arguments += ["--norm_limit", "1.2"]
    assert main(["index", str(tmp_path / "whole"), *arguments]) == 0
    codes_of, read = index_run.ReadBatch.codes, list[int]()

    def stop_at_the_third(batch: Any, *rest: Any) -> Any:
        read.append(len(batch.text.tokens))
        if len(read) in (3, 4):
            os.kill(os.getpid(), signal.SIGINT)
        return codes_of(batch, *rest)

    monkeypatch.setattr(index_run.ReadBatch, "codes", stop_at_the_third)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main(["index", str(tmp_path / "parts"), *arguments])
        assert stopped.value.code == 130
    assert main(["index", str(tmp_path / "parts"), *arguments]) == 0
    whole, parts = CodeIndex.open(tmp_path / "whole"), CodeIndex.open(tmp_path / "parts")
    # No batch is read twice.
    assert len(read) == sum(each.facts.batches for each in whole.folder.segments)
    assert len(parts.folder.segments) > len(whole.folder.segments) > 1
    assert np.array_equal(codes_in(tmp_path / "whole"), codes_in(tmp_path / "parts"))
    for query, within in (("1 & !2", "token"), ("1 & 2", "window"), ("at least 2 of (1, 2, 3)",
                          "document")):  # fmt: skip
        one, other = whole.query(query, within), parts.query(query, within)
        assert one.units.serialize() == other.units.serialize()
        assert whole.passages(one) == parts.passages(other)
    # A run that is complete reads nothing.
    assert main(["index", str(tmp_path / "parts"), *arguments]) == 0
    assert len(read) == sum(each.facts.batches for each in whole.folder.segments)


@pytest.mark.usefixtures("few_in_segment")
def test_a_killed_run_goes_on_from_its_last_segment(
    coders: Path,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config, coder = config_of(tiny_model_folder, tiny_dataset), str(coders / "binary")
    run_index(tmp_path / "whole", coder, config)
    written, write = list[Path](), index_run.SegmentBuilder.write

    def fail(builder: Any, folder: Path, *rest: Any) -> None:
        written.append(folder)
        if len(written) == 2:
            raise OSError("the disk is full")
        write(builder, folder, *rest)

    monkeypatch.setattr(index_run.SegmentBuilder, "write", fail)
    with pytest.raises(OSError, match="full"):
        run_index(tmp_path / "parts", coder, config)
    assert len(CodeIndex.open(tmp_path / "parts").folder.segments) == 1
    run_index(tmp_path / "parts", coder, config)
    assert np.array_equal(codes_in(tmp_path / "whole"), codes_in(tmp_path / "parts"))


def test_more_text_and_other_text_are_added(
    coders: Path, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    out, coder = tmp_path / "out", str(coders / "binary")
    run_index(out, coder, config_of(tiny_model_folder, tiny_dataset, tokens=400))
    first = (out / "segments" / "000000" / "bitmaps.bin").read_bytes()
    run_index(out, coder, config_of(tiny_model_folder, tiny_dataset, tokens=900))
    run_index(tmp_path / "whole", coder, config_of(tiny_model_folder, tiny_dataset, tokens=900))
    assert np.array_equal(codes_in(out), codes_in(tmp_path / "whole"))
    other = tmp_path / "other.txt"
    other.write_text("w3 w4 w5 w6 w7 w3 w4")
    config = config_of(tiny_model_folder, other, tokens=100)
    before = CodeIndex.open(out).folder.tokens
    folder = run_index(out, coder, config)
    assert (folder.tokens - before, len(folder.segments)) == (7, 3)
    assert (out / "segments" / "000000" / "bitmaps.bin").read_bytes() == first
    index = CodeIndex.open(out)
    (found,) = index.nearest(latents_of_prompt(index.folder, "w3 w4 w5", "token"), show=1)
    assert found.distance == 0
    last = index.passages(index.query("0 | !0", "document"), 1000)[-1]
    assert last.document == f"{other}: document 0"
    assert "".join(text for text, _ in last.tokens) == " w3 w4 w5 w6 w7 w3 w4"
    other.write_text("w3 w4")
    with pytest.raises(ValueError, match=r"has changed since it was indexed.*file of their own"):
        run_index(out, coder, config)


def test_another_coder_model_or_setting_is_refused(
    coders: Path, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    out, coder = tmp_path / "out", str(coders / "binary")
    config = config_of(tiny_model_folder, tiny_dataset, tokens=200)
    run_index(out, coder, config)
    with pytest.raises(ValueError, match=r"coder=\w{12}…: .* has \w{12}…\. Give the coder of the"):
        run_index(out, str(coders / "stock"), config)
    for changes, told in (
        (
            {"context_size": 12},
            r"context_size=12: .* has 16\. Set --context_size 16, or give anoth",
        ),
        ({"norm_limit": 3.0}, r"norm_limit=3\.0: .* has 1\.2"),
        ({"first_position": 2}, r"first_position=2: .* has 1"),
        ({"precision": "bfloat16"}, r"precision=bfloat16: .* has float32\. Set --precision fl"),
    ):
        with pytest.raises(ValueError, match=told):
            run_index(out, coder, config_of(tiny_model_folder, tiny_dataset, **changes))
    linked = tmp_path / "other_model"
    linked.mkdir()
    for file in tiny_model_folder.iterdir():
        (linked / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=r"model=.*other_model: .* has .*Name the model of the"):
        run_index(out, coder, config_of(linked, tiny_dataset))
    with pytest.raises(ValueError, match=r"came with \['binary/layers.0', 'run/layers.0'\]"):
        run_index(tmp_path / "o", str(coders / "run"), config_of(tiny_model_folder, tiny_dataset,
                  hook=HOOK))  # fmt: skip
    empty = tmp_path / "empty"
    Dataset.from_dict({"text": [""]}).to_parquet(empty / "train.parquet")
    with pytest.raises(ValueError, match="holds no text to index"):
        run_index(tmp_path / "e", coder, config_of(tiny_model_folder, empty))


def test_a_prompt_is_read_in_the_precision_of_the_index(
    coders: Path,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    read, precisions = OpenedModel.read, list[str]()

    def note(opened: OpenedModel, *given: Any) -> ReadBatch:
        precisions.append(opened.precision)
        return read(opened, *given)

    monkeypatch.setattr(OpenedModel, "read", note)
    config = config_of(tiny_model_folder, tiny_dataset, tokens=200, precision="bfloat16")
    folder = run_index(tmp_path / "out", str(coders / "binary"), config)
    latents_of_prompt(IndexFolder.open(folder.path), "w3 w4 w5", "token")
    assert set(precisions) == {"bfloat16"}


def test_a_retrained_coder_is_refused_for_a_prompt(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    save_coders(tmp_path, tiny_model_folder)
    folder = run_index(
        tmp_path / "out", str(tmp_path / "binary"), config_of(tiny_model_folder, tiny_dataset)
    )
    with pytest.raises(ValueError, match=r"near='': has no token with a code.*longer prompt"):
        latents_of_prompt(folder, "", "token")
    coder = BinarySAE.load_from_disk(tmp_path / "binary")
    with torch.no_grad():
        coder.b_enc += 0.1
    coder.save_model(tmp_path / "binary")
    with pytest.raises(ValueError, match=r"coder=\w{12}…: .* has \w{12}…"):
        latents_of_prompt(folder, "w3", "token")


def test_the_command_line_searches(
    coders: Path,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = str(tmp_path / "out")
    run_index(Path(out), str(coders / "stock"), config_of(tiny_model_folder, tiny_dataset))
    capsys.readouterr()

    def printed(*arguments: str) -> str:
        assert main(["search", out, *arguments]) == 0
        return capsys.readouterr().out

    counted = printed("1 | 2", "--count")
    assert re.match(r"1 \| 2: \d+ of \d+,?\d+ tokens \(.*%\)\nThe coder is a stock coder", counted)
    shown = printed("1 | 2", "--show", "3", "--cofiring", "--json", str(tmp_path / "found.json"))
    assert shown.startswith(counted)
    assert shown.count("«") == 3
    assert "latents that fire with it" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["command"] == "search"
    assert len(found["results"]["passages"]) == len(found["results"]["cofiring"]) == 3
    assert printed("1 & !1").startswith("1 & !1: none of")
    near = printed("--near", "w3 w4 w5", "--show", "2", "--within", "document",
                   "--distance", "jaccard")  # fmt: skip
    assert re.match(r"\d+ latents fire: .*\n0\.\d+  .*document", near)
    for arguments, told in (
        (["1 &"], "at character 4"),
        ([f"{LATENTS}"], f"latent {LATENTS} is out of range: the coder has 0 to {LATENTS - 1}"),
        ([], "got no query. Give one of QUERY, --near, --serve"),
        (["1", "--near", "w3"], "got QUERY and --near. Give one of"),
        (["1", "--show", "0"], "show=0"),
    ):
        with pytest.raises(SystemExit):
            main(["search", out, *arguments])
        assert told in capsys.readouterr().err


def test_smollm2_s_text_is_found(
    smollm2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    config = BinarySAEConfig(d_in=576, d_sae=300, k=10)
    config.metadata.hook_name = "blocks.2.hook_resid_pre"
    config.metadata.model_name = str(smollm2_folder)
    BinarySAE(config).save_model(tmp_path / "coder")
    text = tmp_path / "text.txt"
    text.write_text("The lighthouse stands on a cliff — by the café. " * 20)
    out, coder = str(tmp_path / "out"), str(tmp_path / "coder")
    arguments = ["--dataset", str(text), "--tokens", "200", "--context_size", "64"]
    assert main(["index", out, coder, *arguments]) == 0
    index = CodeIndex.open(out)
    (passage,) = index.passages(index.query("0 | !0", "document"))
    assert "".join(each for each, _ in passage.tokens).startswith("The lighthouse stands on a ")
    prompt = "The lighthouse stands on a cliff"
    (found,) = index.nearest(latents_of_prompt(index.folder, prompt, "token"), show=1)
    assert found.distance == 0
    assert (" cliff", True) in found.passage.tokens
