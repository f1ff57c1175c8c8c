"""Tests of `sae-binary interpret` on a tiny model. If delphi is installed, its scorers run too."""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_binary_ext.cli import main
from sae_binary_ext.commands import InterpretConfig, run_interpret
from sae_binary_ext.commands.interpret.examples import ActiveExamples, LatentExamples
from sae_binary_ext.commands.interpret.interpret_scores import f1_of
from sae_binary_ext.commands.interpret.with_delphi import LanguageModelScorer
from sae_binary_ext.measure import candidates
from sae_binary_ext.measure.judge import Judge
from sae_binary_ext.settings import JudgeFields
from tests.integration.compare_helpers import LATENTS, save_coders
from tests.judge_server import JudgeServer, Messages, is_scoring, noise, windows_of

pytestmark = pytest.mark.integration

WINDOW = 8


@pytest.fixture
def coders(tmp_path: Path, tiny_model_folder: Path) -> list[str]:
    return save_coders(tmp_path, tiny_model_folder)


@pytest.fixture
def needs_delphi() -> None:
    pytest.importorskip("delphi.scorers", reason="needs the package eai-delphi")


def config_of(model: Path, dataset: Path, output: Path, **changes: Any) -> InterpretConfig:
    settings: dict[str, Any] = {
        "tokens": 3000, "context_size": 17, "window": WINDOW, "latents": 12, "judge": "tokens",
    }  # fmt: skip
    return InterpretConfig(
        model=str(model), dataset=str(dataset), output=output, **settings | changes
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    _, *found = (folder / "scores.jsonl").read_text().splitlines()
    return [json.loads(line) for line in found]


def document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "interpretation.json").read_text())


def test_coders_of_both_hosts_are_read_on_the_same_text(
    coders: list[str], tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    output = tmp_path / "out"
    table = run_interpret(coders, config_of(tiny_model_folder, tiny_dataset, output))
    names = [each["name"] for each in document(output)["coders"]]
    assert len(names) == 4
    assert all(name in table for name in names)
    scores = lines(output)
    assert len(scores) == 4 * 12
    # The coders have k=5 active latents of 40.
    rates = [score["rate"] for score in scores]
    assert sum(rates) / len(rates) == pytest.approx(5 / LATENTS, abs=0.03)
    # Words are random, so only the token and the tokens before it predict a latent.
    areas = [score["area"] for score in scores if score["reason"] is None]
    assert sorted(areas)[len(areas) // 2] > 0.6


def test_an_interrupted_run_goes_on(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    unbroken = config_of(tiny_model_folder, tiny_dataset, tmp_path / "unbroken")
    run_interpret(coders[:2], unbroken)
    read: list[int] = []
    read_hooks = candidates.read_hooks

    def interrupted(*args: Any) -> Any:
        read.append(len(read))
        if len(read) == 5:
            raise KeyboardInterrupt
        return read_hooks(*args)

    monkeypatch.setattr(candidates, "read_hooks", interrupted)
    monkeypatch.setattr("sae_binary_ext.measure.reading.SECONDS_BETWEEN_SAVES", 0.0)
    broken = config_of(tiny_model_folder, tiny_dataset, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run_interpret(coders[:2], broken)
    run_interpret(coders[:2], broken)
    assert lines(tmp_path / "broken") == lines(tmp_path / "unbroken")
    batches = len(read)
    run_interpret(coders[:2], broken)
    assert len(read) == batches


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sampling": "top"}, "sampling='top': choose one of random, quantiles, margin"),
        ({"judge": "gpt"}, "judge='gpt': choose one of embedding, tokens"),
        ({"negatives": "near"}, "negatives='near'"),
        ({"negatives": "hard"}, "needs an embedding"),
        ({"judge_url": "http://127.0.0.1/v1"}, "give both, or neither"),
        ({"window": 40}, "no window of 40 tokens fits"),
        ({"latents": 0}, "latents=0"),
        ({"judge_windows": 21}, "judge_windows=21: give at most 20"),
        ({"judge_retries": -1}, "judge_retries=-1"),
        ({"judge_parallel": 0}, "judge_parallel=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], error: str):
    with pytest.raises(ValueError, match=error):
        config_of(Path("model"), Path("text"), Path("out"), **changes)


def test_without_delphi_the_command_says_what_to_install(
    coders: list[str],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for name in ("sentence_transformers", "delphi.scorers"):
        monkeypatch.setitem(sys.modules, name, None)
    options = ["--model", str(tiny_model_folder), "--output", str(tmp_path / "out")]
    judge = ["--judge", "tokens", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "none"]
    for asked in ([], judge):
        with pytest.raises(SystemExit):
            main(["interpret", *coders, *options, *asked])
        assert "sae_binary_ext[delphi]" in capsys.readouterr().err
        # The error comes at once, before the text is read.
        assert not (tmp_path / "out" / "read.safetensors").exists()


@pytest.mark.usefixtures("needs_delphi")
@pytest.mark.parametrize("sampling", ["random", "quantiles", "margin"])
@pytest.mark.parametrize("negatives", ["random", "hard"])
def test_an_embedding_scores_all(
    sampling: str,
    negatives: str,
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
):
    output = tmp_path / "out"
    changes = {"judge": "embedding", "sampling": sampling, "negatives": negatives, "latents": 4}
    run_interpret(coders[:2], config_of(tiny_model_folder, tiny_dataset, output, **changes))
    found = [each for each in document(output)["coders"] if "delphi" in each["judge"]]
    assert [each["drawn"] for each in found] == [4, 4]
    scores = [score for score in lines(output) if "delphi" in score["judge"]]
    for score in scores:
        if score["reason"] is None:
            assert all(0 <= score[measure] <= 1 for measure in ("area", "accuracy", "f1"))
    assert any(score["reason"] is None for score in scores)
    before = lines(output)
    run_interpret(coders[:2], config_of(tiny_model_folder, tiny_dataset, output, **changes))
    assert lines(output) == before


# Token ids in the examples: the latent's word, two on which the judge errs, and any other word.
OWN, MISSED, MISTAKEN, OTHER = 7, 8, 9, 10
ACTIVE, SILENT = 40, 40


def examples(missed: int, mistaken: int) -> LatentExamples:
    """Active windows hold OWN, some also MISSED. Silent windows hold OTHER, some also MISTAKEN."""
    values = torch.zeros(20 + ACTIVE, WINDOW)
    values[:, 3] = 1.0
    active = torch.full((20 + ACTIVE, WINDOW), OTHER)
    active[:, 3] = OWN
    # Each window is different, because the judge is not asked the same question twice.
    active[:, 1] = 100 + torch.arange(20 + ACTIVE)
    active[20 : 20 + missed, 0] = MISSED
    silent = torch.full((20 + SILENT, WINDOW), OTHER)
    silent[20 : 20 + mistaken, 0] = MISTAKEN
    silent[:, 1] = 200 + torch.arange(20 + SILENT)
    return LatentExamples(
        3, 500, 0.01,
        ActiveExamples(active[:20], values[:20], [0] * 20),
        ActiveExamples(active[20:], values[20:], [0] * ACTIVE),
        silent[:20], silent[20:],
    )  # fmt: skip


def says_the_rule(messages: Messages) -> str:
    """A judge that calls windows with OWN active, but errs if they hold MISSED or MISTAKEN."""
    if not is_scoring(messages):
        return "[EXPLANATION]: the word w7"
    assert "the word w7" in messages[-1]["content"]
    told = [
        int((" w7 " in window.replace("<<", "").replace(">>", "") and "w8" not in window)
            or "w9" in window)
        for window in windows_of(messages)
    ]  # fmt: skip
    return f"My answer is {told}"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer(says_the_rule)
    server.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: JudgeServer, folder: Path, of: LatentExamples) -> list[Any]:
    judge = Judge(
        JudgeFields(server.base_url, "rule", 10**6, 2, judge_retries=0), folder / "answers.jsonl"
    )
    scorer = LanguageModelScorer(judge, lambda token: f" w{token} ", 5)
    return asyncio.run(scorer.score("coder", of))


@pytest.mark.usefixtures("needs_delphi")
@pytest.mark.parametrize(("missed", "mistaken"), [(0, 0), (12, 6), (40, 0), (40, 40)])
def test_the_expected_f1_is_met(missed: int, mistaken: int, server: JudgeServer, tmp_path: Path):
    detection, fuzz = ask(server, tmp_path, examples(missed, mistaken))
    hits = ACTIVE - missed
    for score, judge in ((detection, "detection, rule"), (fuzz, "fuzz, rule")):
        assert score.judge == judge
        assert score.f1 == pytest.approx(f1_of(hits, mistaken, missed))
        assert score.accuracy == pytest.approx((hits + SILENT - mistaken) / (ACTIVE + SILENT))
        assert (score.failed, score.answered) == (0, 80)
        assert score.explanation == "the word w7"
    # One request for the explanation, and two scorers that ask about 80 windows, five at a time.
    assert len(server.asked) == 1 + 2 * 16
    shown = server.asked[0][-1]["content"]
    assert shown.count("<< w7 >>") == 20
    fuzzed = [m for m in server.asked if is_scoring(m) and "<<" in m[-1]["content"]]
    assert len(fuzzed) == 16
    assert sum(m[-1]["content"].count("<< w7 >>") for m in fuzzed) == ACTIVE


@pytest.mark.usefixtures("needs_delphi")
def test_what_cannot_be_read_is_counted_as_failed(server: JudgeServer, tmp_path: Path):
    garbled = iter(range(10**6))

    def rule(messages: Messages) -> str:
        if is_scoring(messages) and next(garbled) % 4 == 0:
            return "I cannot tell."
        return says_the_rule(messages)

    server.rule = rule
    for score in ask(server, tmp_path, examples(0, 0)):
        assert (score.failed, score.answered, score.f1, score.reason) == (20, 60, 1.0, None)
    server.rule = lambda messages: says_the_rule(messages) if not is_scoring(messages) else "?"
    for score in ask(server, tmp_path / "..", examples(1, 0)):
        assert (score.failed, score.f1, score.reason) == (80, None, "answers failed")
    server.rule = lambda _: "It is about words."
    (tmp_path / "third").mkdir()
    for score in ask(server, tmp_path / "third", examples(0, 0)):
        assert (score.f1, score.reason) == (None, "the explanation failed")


@pytest.mark.usefixtures("needs_delphi")
def test_a_server_that_dies_loses_nothing_and_is_asked_nothing_twice(
    server: JudgeServer,
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    server.rule = noise
    output = tmp_path / "out"
    options = {
        "model": tiny_model_folder, "dataset": tiny_dataset, "output": output, "tokens": 3000,
        "context-size": 17, "window": WINDOW, "latents": 6, "judge": "tokens",
        "judge-url": server.base_url, "judge-model": "noise", "judge-retries": 0,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = ["interpret", coders[0], coders[1], *arguments]
    for alive in (40, 60):
        server.dies_after = len(server.asked) + alive
        with pytest.raises(SystemExit):
            main(command)
        assert "goes on from here" in capsys.readouterr().err
    interrupted = [score for score in lines(output) if "noise" in score["judge"]]
    server.dies_after = None
    assert main(command) == 0
    answered = [json.dumps(messages) for messages in server.answered]
    assert len(set(answered)) == len(answered)
    scores = [score for score in lines(output) if "noise" in score["judge"]]
    assert scores[: len(interrupted)] == interrupted
    judged = [score for score in scores if score["reason"] is None]
    assert judged
    assert all(score["failed"] == 0 for score in judged)
    requests = sum(score["answered"] // 5 for score in judged) + len(judged) // 2
    assert len(answered) == requests


@pytest.mark.usefixtures("needs_delphi")
def test_smollm2_can_be_the_judge(server: JudgeServer, smollm2_folder: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)

    def generate(messages: Messages) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :])

    server.rule = generate
    whole = examples(0, 0)
    few = replace(
        whole,
        asked=ActiveExamples(whole.asked.tokens[:5], whole.asked.values[:5], [0] * 5),
        silent_asked=whole.silent_asked[:5],
    )
    scores = ask(server, tmp_path, few)
    assert [score.judge for score in scores] == ["detection, rule", "fuzz, rule"]
    explained = scores[0].explanation is not None
    assert len(server.answered) == 1 + 4 * explained
    for score in scores:
        # This small model judges badly. Wrong answers and missing answers are both counted.
        if score.reason is None:
            assert score.answered + score.failed == 10
            assert 0 <= score.accuracy <= 1
        else:
            assert score.f1 is None
