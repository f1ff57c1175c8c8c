"""Fine-tuning of binary and stock coders beside each other: its search, its runs and its page."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from benchmarks.finetuning import document, results, running
from benchmarks.finetuning.coders import KINDS
from benchmarks.finetuning.running import Run
from benchmarks.result_lines import Line
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands import FinetuneConfig

WIDTH, LATENTS = 16, 48


def searched(best: float) -> list[Line]:
    """Lines of a search in which the learning rate `best` has the lowest divergence."""
    return [
        run.key() | {"last_divergence": abs(run.lr - best) + len(run.parameters)}
        for run in results.search_runs()
    ]


def test_all_kinds_get_the_same_search():
    settings = {
        kind: [(run.lr, run.parameters) for run in results.search_runs() if run.kind == kind]
        for kind in KINDS
    }
    same = settings["topk_16"]
    assert len(same) == len(set(same)) > 3
    assert list(settings.values()) == [same] * len(KINDS)


def test_the_longer_run_has_the_setting_with_the_lowest_divergence():
    lines = searched(best=0.02)
    assert results.final_run("binary_40", lines) == Run("binary_40", 0.02, (), running.TOKENS)
    lines[0]["last_divergence"] = -1.0
    first = results.search_runs()[0]
    assert results.final_run(first.kind, lines) == Run(first.kind, first.lr, (), running.TOKENS)
    assert results.final_run(first.kind, lines[1:]) is None


@pytest.mark.integration
def test_a_line_has_the_figures_of_the_command(
    tiny_llama: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    coders: list[Path] = []
    for layer in (0, 1):
        place = SAEMetadata(
            hook_name=f"blocks.{layer}.hook_mlp_out", model_name=str(tiny_llama), context_size=16
        )
        config = TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=6, metadata=place)
        coders.append(tmp_path / "coders" / str(layer))
        TopKSAE(config).save_model(coders[-1])
    small = partial(FinetuneConfig, dataset=str(tiny_dataset), context_size=16)
    monkeypatch.setattr(running, "FinetuneConfig", small)
    monkeypatch.setattr(running, "folders_of", lambda folder, kind: coders)
    monkeypatch.setattr(running, "export_smollm2", lambda folder: tiny_llama)
    monkeypatch.setattr(running, "LAYERS", (0, 1))
    states = {str(layer): torch.randn(200, WIDTH) for layer in (0, 1)}
    monkeypatch.setattr(running, "activations", lambda folder: states)
    monkeypatch.setattr(running, "TOKENS", 600)
    monkeypatch.setattr(running, "HELD_OUT_TOKENS", 400)

    def made(run: Run) -> tuple[Line, Any]:
        line = running.make(tmp_path, run)
        file = tmp_path / run.name / "finetune.json"
        return line, json.loads(file.read_text())["results"]

    line, found = made(Run("topk_16", 0.02, (), 600))
    divergences = [step["divergence"] for step in found["training"]]
    last = divergences[-round(len(divergences) / 3) :]
    assert line["last_divergence"] == pytest.approx(sum(last) / len(last))
    assert line["losses"] == found["losses"]
    assert line["predictions"] == found["predictions"] > 100
    assert [coder["fvu_after"] for coder in line["coders"]] == [
        coder["fvu_after"] for coder in found["coders"]
    ]
    for when, saved in (
        ("before", coders),
        ("after", [each["folder"] for each in found["coders"]]),
    ):
        bits = [
            running.figures_of(load_coder(Path(one)), own, own)["mdl_bits"]
            for one, own in zip(saved, states.values(), strict=True)
        ]
        assert line[f"mdl_bits_{when}"] == pytest.approx(sum(bits))
    assert line["mdl_bits_before"] != line["mdl_bits_after"]
    short, _ = made(Run("topk_16", 0.02, results.DECODERS, 300))
    assert short.keys() == {*Run("topk_16", 0.02, (), 300).key(), "last_divergence"}


def test_the_tables_have_a_row_for_each_kind_and_each_coder():
    lines = searched(best=0.01)
    estimate = {"value": 0.5, "interval": [0.4, 0.6]}
    losses = {
        name: dict.fromkeys(("before", "after", "fall"), estimate) for name in document.LOSSES
    }
    mdl = {"mdl_bits_before": 3, "mdl_bits_after": 3}
    alone = {"value": 2.0, "interval": [None, None]}
    coder = {name: 2 if name.startswith("dead") else alone for name in running.COUNTED} | {
        "site": "blocks.0.hook_mlp_out"
    }
    final = []
    for kind in KINDS:
        run = results.final_run(kind, lines)
        assert run is not None
        final.append((run, {**run.key(), "losses": losses, "coders": [coder, coder], **mdl}))
    rows = document.losses_table(final).splitlines()
    assert rows[3] == (
        f"| binary, k = 40 | {running.TOKENS:,} | 0.01 | 4 | 4 | 3 | 3 "
        "| 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] "
        "| 50.0% [40.0%, 60.0%] | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] "
        "| 50.0% [40.0%, 60.0%] |"
    )
    assert len(
        [row for row in document.coders_table(final).splitlines() if "hook_mlp_out" in row]
    ) == 2 * len(KINDS)
    assert "| 2.000 | 2.000 | 2 | 2 | 2 | 2 |" in document.coders_table(final)
    assert len(document.search_table(lines).splitlines()) == 4 + len(KINDS)
    assert "k = 40" not in document.search_table(lines[1:])
