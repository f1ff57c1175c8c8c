"""`sae-binary rules` on coders of a small model, in text and on tasks of sae-probes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset

from sae_binary_ext.cli import main
from sae_binary_ext.commands.rules import RulesConfig, run_rules
from sae_binary_ext.measure.documents import cut_rows
from sae_binary_ext.measure.reading import open_coders
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders
from tests.integration.test_comsem import PLANTED, save_planted
from tests.integration.test_probe import model_of_letters

pytestmark = pytest.mark.integration
__all__ = ["model_of_letters"]  # a fixture
TASKS = ["118_us_state_CA", "156_athlete_sport_baseball"]


def rules(coders: list[str], model: Path, dataset: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--output", str(output)]
    arguments += ["--context_size", str(CONTEXT), "--tokens", "4000", *more]
    assert main(["rules", *coders, *arguments]) == 0
    assert (output / "rules.html").is_file()
    return json.loads((output / "rules.json").read_text())["results"]


def test_a_latent_of_one_word_is_the_rule_for_it_and_figures_are_a_recount(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    folder, word = save_planted(tiny_model_folder, tmp_path / "planted")
    labels = [f"token:^{word}$", "token:^w1", f"next:^{word}$"]
    found = rules([folder], tiny_model_folder, tiny_dataset, tmp_path / "out", "--labels", *labels)
    own, broad, following = found["rules"]
    assert own["rule"] == own["single"] == str(PLANTED)
    assert own["precision"]["value"] == own["coverage"]["value"] == own["auc"]["value"] == 1
    assert own["labelled"] == own["hits"] == own["holds"]
    # Words are drawn at random, so that no latent tells the next one.
    assert following["auc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert following["rows"] < own["rows"]
    assert found["associations"] == []

    # Read the text without the command, and count each clause of the second rule.
    config = RulesConfig(
        model=str(tiny_model_folder), dataset=str(tiny_dataset), context_size=CONTEXT
    )
    opened = open_coders([folder], config, tmp_path / "again")
    dataset: Any = load_dataset("parquet", data_files=str(tiny_dataset / "train.parquet"))
    codes: list[torch.Tensor] = []
    texts: list[str] = []
    read = 0
    for batch in cut_rows(dataset["train"]["text"], opened.tokenizer, CONTEXT, 8):
        where = batch.positions(1)
        hidden = opened.forward(batch.tokens)["blocks.0.hook_in"][where]
        codes.append(opened.candidates[0].coder.encode(hidden).detach() != 0)
        texts += map(opened.tokenizer.decode, batch.tokens[where][:, None].tolist())
        read += int(where.sum())
        if read >= 4000:
            break
    active = torch.cat(codes)
    labelled = torch.tensor([bool(re.search("^w1", text)) for text in texts])
    assert len(active) == broad["rows"] + broad["fitted_rows"]
    assert int(labelled.sum()) == broad["labelled"] + broad["fitted_labelled"]
    for clause in broad["clauses"]:
        holds = torch.ones(len(active), dtype=torch.bool)
        for literal in clause["clause"].split(" & "):
            holds &= active[:, int(literal.lstrip("!"))] ^ literal.startswith("!")
        for figure, expected in (("rows", holds), ("labelled", holds & labelled)):
            assert clause["fitted"][figure] + clause["measured"][figure] == int(expected.sum())


def test_documents_are_labelled_by_a_column(tiny_model_folder: Path, tmp_path: Path):
    folder, word = save_planted(tiny_model_folder, tmp_path / "planted")
    generator = torch.Generator().manual_seed(0)
    texts, topics = list[str](), list[str]()
    for number in range(80):
        words = [f"w{each}" for each in torch.randint(2, 60, (12,), generator=generator).tolist()]
        words = [each for each in words if each != word]
        texts.append(" ".join([*words, word] if number % 4 == 0 else words))
        topics.append("sport" if number % 4 == 0 else "art")
    Dataset.from_dict({"text": texts, "topic": topics}).to_parquet(tmp_path / "d" / "train.parquet")
    more = ("--labels", "column:topic=sport", "--norm_limit", "inf")
    found = rules([folder], tiny_model_folder, tmp_path / "d", tmp_path / "out", *more)
    (rule,) = found["rules"]
    assert rule["rule"] == str(PLANTED)
    assert rule["rows"] + rule["fitted_rows"] == 80
    assert rule["precision"]["value"] == rule["coverage"]["value"] == 1


def test_coders_of_both_hosts_have_associations(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: Any
):
    folders = save_coders(tmp_path, tiny_model_folder)
    found = rules(folders, tiny_model_folder, tiny_dataset, tmp_path / "out", "--hook", HOOK)
    assert found["rules"] == []
    names = [each["coder"] for each in found["associations"]]
    assert len(names) == 4
    assert sum(name.endswith(", which latents are active") for name in names) == 2
    assert "Latents that imply others" in capsys.readouterr().out


def test_tasks_are_told_and_a_stopped_run_goes_on(
    model_of_letters: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sae_binary_ext.commands.rules import rule_tasks

    folders, fitted = save_coders(tmp_path, model_of_letters)[:2], list[str]()
    score_rule = rule_tasks.score_rule

    def noted(of: str, label: str, *rest: Any) -> Any:
        if label.endswith(TASKS[1]) and len(fitted) < 3:
            raise KeyboardInterrupt
        fitted.append(label)
        return score_rule(of, label, *rest)

    monkeypatch.setattr(rule_tasks, "score_rule", noted)
    config = RulesConfig(
        model=str(model_of_letters),
        dataset=str(tiny_dataset),
        hook=HOOK,
        output=tmp_path / "out",
        labels=[f"task:{name}" for name in TASKS],
    )
    with pytest.raises(KeyboardInterrupt):
        run_rules(folders, config)
    assert fitted == [f"task:{TASKS[0]}"] * 2
    fitted.append("resumed")
    found = run_rules(folders, config).results["rules"]
    assert fitted[3:] == [f"task:{TASKS[1]}"] * 2
    assert {(each["coder"], each["label"]) for each in found} == {
        (coder, f"task:{name}")
        for coder in ("binary", "stock, which latents are active")
        for name in TASKS
    }
    # sae-probes' split: half of the examples of one task.
    assert {(each["fitted_rows"], each["rows"]) for each in found} <= {(900, 99), (1024, 500)}
    assert all(0 <= each["probe_auc"] <= 1 for each in found)
    with pytest.raises(ValueError, match="sae-probes has no such task"):
        run_rules(folders, RulesConfig(labels=["task:no such"], hook=HOOK, output=tmp_path))
