"""The judge copes with a local server that gives errors and malformed answers."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_binary_ext.measure.judge import (
    CHARACTERS_A_TOKEN,
    MALFORMED_ASKED_AGAIN,
    Judge,
    JudgeStoppedError,
    MalformedAnswerError,
    Rehearsal,
)
from sae_binary_ext.settings import JudgeFields
from tests.judge_server import TOKENS, JudgeServer, Messages

BUDGET = 1_000_000


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer(lambda messages: f"answer to {messages[-1]['content']}")
    server.start()
    yield server
    server.shutdown()
    server.server_close()


def message(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def ask(judge: Judge, *texts: str) -> list[Any]:
    """Send all texts at once; return the answers and errors."""

    async def all_of_them() -> list[Any]:
        questions = (judge.ask(message(text), temperature=0.0) for text in texts)
        return await asyncio.gather(*questions, return_exceptions=True)

    return asyncio.run(all_of_them())


def new_judge(server: JudgeServer, folder: Path, **changes: Any) -> Judge:
    settings: dict[str, Any] = {"tokens": BUDGET, "parallel": 2, "timeout": 5.0, "retries": 2}
    fields = {f"judge_{name}": value for name, value in (settings | changes).items()}
    return Judge(JudgeFields(server.base_url, "rule", **fields), folder / "answers.jsonl")


def test_nothing_is_asked_twice(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    first = ask(new_judge(server, tmp_path), "one", "two")
    assert first == ["answer to one", "answer to two"]
    judge = new_judge(server, tmp_path)
    assert judge.spent == 2 * TOKENS
    assert ask(judge, "two", "three", "one") == ["answer to two", "answer to three", first[0]]
    assert len(server.asked) == 3
    assert server.keys == {"Bearer a secret"}
    assert not any(b"a secret" in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["busy", "malformed", "empty", "dropped", "slow"])
def test_a_fault_that_passes_is_got_over(fault: str, server: JudgeServer, tmp_path: Path):
    server.faults = [fault, fault]
    judge = new_judge(server, tmp_path, timeout=0.3)
    assert ask(judge, "one") == ["answer to one"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", ["malformed", "empty"])
def test_an_answer_that_is_none_fails_alone(fault: str, server: JudgeServer, tmp_path: Path):
    server.faults = [fault] * (1 + MALFORMED_ASKED_AGAIN)
    judge = new_judge(server, tmp_path, parallel=1)
    failed, answered = ask(judge, "one", "two")
    assert isinstance(failed, MalformedAnswerError)
    assert answered == "answer to two"
    judge.check()


@pytest.mark.parametrize("fault", ["busy", "dropped", "slow"])
def test_a_server_that_is_gone_stops_the_run(fault: str, server: JudgeServer, tmp_path: Path):
    server.faults = [None, *[fault] * 3]
    judge = new_judge(server, tmp_path, timeout=0.3, parallel=1)
    answered, failed, not_sent = ask(judge, "one", "two", "three")
    assert answered == "answer to one"
    assert isinstance(failed, JudgeStoppedError)
    assert isinstance(not_sent, JudgeStoppedError)
    assert len(server.asked) == 4
    with pytest.raises(JudgeStoppedError, match="goes on from here"):
        judge.check()
    # A new judge reuses the answers that the first judge got.
    again = new_judge(server, tmp_path)
    assert ask(again, "one", "two", "three")[0] == "answer to one"
    assert len(server.asked) == 6


def test_no_more_than_the_budget_is_spent(server: JudgeServer, tmp_path: Path):
    judge = new_judge(server, tmp_path, tokens=2 * TOKENS, parallel=1)
    *answered, stopped = ask(judge, "one", "two", "three")
    assert answered == ["answer to one", "answer to two"]
    assert isinstance(stopped, JudgeStoppedError)
    assert "judge_tokens=20: all are spent" in str(stopped)
    assert len(server.asked) == 2
    # An answer that is already in the file costs no tokens.
    assert ask(new_judge(server, tmp_path, tokens=TOKENS), "two") == ["answer to two"]


def test_half_a_line_is_left_behind(server: JudgeServer, tmp_path: Path):
    ask(new_judge(server, tmp_path), "one")
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text() + '{"key": "abc", "te')
    judge = new_judge(server, tmp_path)
    assert ask(judge, "one", "two") == ["answer to one", "answer to two"]
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2


def test_a_rehearsal_counts():
    rehearsal = Rehearsal("x" * CHARACTERS_A_TOKEN)

    async def twice() -> list[str]:
        return [await rehearsal.ask(message("y" * 8 * CHARACTERS_A_TOKEN)) for _ in range(2)]

    assert asyncio.run(twice()) == ["x" * CHARACTERS_A_TOKEN] * 2
    assert (rehearsal.requests, rehearsal.tokens) == (2, 2 * 9)
