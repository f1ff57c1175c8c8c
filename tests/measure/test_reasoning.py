"""Reasoning that a judge writes into its answers is removed."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_binary_ext.commands.comsem.judging import ComsemScore, Questions, language_model_score
from sae_binary_ext.measure.judge import without_reasoning
from tests.judge_server import JudgeServer
from tests.measure.test_judge import ask, new_judge

THOUGHT = "Perhaps [0, 0, 0]?\n\nyes or no, [1, 1]."
BLOCKS = [
    f"<think>{THOUGHT}</think>",
    f"<think>\n{THOUGHT}\n</think>\n\n",
    f"<THINK>{THOUGHT}</Think >",
    f"<thinking>{THOUGHT}</thinking>",
    f'<thinking budget="9">{THOUGHT}</thinking>',
    f"<thought>{THOUGHT}</thought>",
    f"<reasoning>{THOUGHT}</reasoning>",
    f"<antThinking>{THOUGHT}</antThinking>",
    f"<seed:think>{THOUGHT}</seed:think>",
    f"<inner_monologue>{THOUGHT}</inner_monologue>",
    f'<INNER_MONOLOGUE voice="own">{THOUGHT}</INNER_MONOLOGUE>',
    f"<chain-of-thought>{THOUGHT}</chain-of-thought>\n",
    f"<reasoning_steps>\n<step>{THOUGHT}</step>\n</reasoning_steps>",
    f"<plan>{THOUGHT}</plan>",
    "<notes>yes</notes>\n\n",
    f"<step>{THOUGHT}</step>\n<step>{THOUGHT}</step>",
    "<thinking />",
    f"{THOUGHT}</inner_monologue>",
    f"{THOUGHT}</REASONING>",
    f"[THINK]{THOUGHT}[/THINK]",
    f"◁think▷{THOUGHT}◁/think▷",
    f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|><|begin_of_solution|>",
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
    f"Here is my thought process: {THOUGHT} Here is my response:",
    f"<think>one</think><think>{THOUGHT}</think>",
    f"<think>outer <think>{THOUGHT}</think> outer</think>",
    f"{THOUGHT}</think>",
    "<think></think>",
]
ANSWERS = [
    "[1, 0, 1]",
    "yes",
    "[EXPLANATION]: words that think about <b>thoughts</b>",
    "a\nb",
    "<b>Names</b> of places",
    "<td> and </td> around numbers",
]
# Tags of these names could also be markup of the answer.
OF_ANY_NAME = ("<plan>", "<notes>", "<step>")


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer(lambda messages: messages[-1]["content"])
    server.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_block_of_reasoning_is_left_out(answer: str, block: str):
    assert without_reasoning(block + answer) == answer
    assert without_reasoning(answer) == answer
    assert without_reasoning(f"{block}<answer>{answer}</answer>") == answer
    if not block.startswith(OF_ANY_NAME):
        assert without_reasoning(block) == ""


@pytest.mark.parametrize(
    "opening",
    ["<think>", "<thinking>", "[THINK]", "<|begin_of_thought|>", '<Inner_Monologue id="1">'],
)
def test_a_block_that_was_cut_off_has_no_answer(opening: str):
    assert without_reasoning(f"{opening}{THOUGHT}") == ""
    assert without_reasoning(f"yes {opening}{THOUGHT}") == "yes"


def test_a_judge_returns_answers_alone_also_those_of_an_earlier_run(
    server: JudgeServer, tmp_path: Path
):
    asked = [f"{BLOCKS[0]}yes", BLOCKS[0], "no"]
    for _ in range(2):
        assert ask(new_judge(server, tmp_path), *asked) == ["yes", "", "no"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("yes", "yes"),
        (None, ""),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}], "yes"),
    ],
)
def test_fields_and_parts_of_reasoning_are_left_out(
    content: Any, answer: str, field: str, server: JudgeServer, tmp_path: Path
):
    server.rule = lambda _: {"content": content, field: THOUGHT}
    assert ask(new_judge(server, tmp_path), "one") == [answer]
    assert len(server.asked) == 1


def comsem_score(rule: Callable[[str], str], server: JudgeServer, folder: Path) -> ComsemScore:
    server.rule = lambda messages: rule(messages[-1]["content"])
    unscored = ComsemScore("coder", latent=0, given=3, absent=0.0)
    asked = ["own one", "own two"], ["other one", "other two"]
    questions = Questions(["shown"], ["silent"], *asked)
    return asyncio.run(language_model_score(new_judge(server, folder), unscored, questions))


def test_the_phrase_and_the_verdicts_are_read_after_the_reasoning(
    server: JudgeServer, tmp_path: Path
):
    def rule(request: str) -> str:
        if request.startswith("Below"):
            return f"{BLOCKS[0]}\nwords of one's own"
        return f"{BLOCKS[0]}{'Yes' if 'own two' in request or 'own one' in request else 'No'}."

    score = comsem_score(rule, server, tmp_path)
    assert score.phrase == "words of one's own"
    assert (score.fitting, score.others_fitting, score.failed) == (1.0, 0.0, 0)


@pytest.mark.parametrize("cut_off", ["Below", "Here"])
def test_what_is_left_without_an_answer_counts_as_failed(
    cut_off: str, server: JudgeServer, tmp_path: Path
):
    def rule(request: str) -> str:
        return "<think>\nYes" if request.startswith(cut_off) else "words"

    score = comsem_score(rule, server, tmp_path)
    assert score.failed == {"Below": 1, "Here": 4}[cut_off]
    assert score.reason == {"Below": "the phrase failed", "Here": "answers failed"}[cut_off]
    assert score.fitting is None
