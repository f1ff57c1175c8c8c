"""Ask a language model by the chat-completions protocol, and keep its answers in a file."""

import asyncio
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from sae_binary_ext.measure.progress import whole_lines
from sae_binary_ext.measure.reasoning import answer_in, without_reasoning
from sae_binary_ext.settings import JudgeFields


def imported(name: str) -> Any:
    """Import a module of delphi or of its dependencies; raise ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is not installed, and scores beyond the token baseline need it: pip install "
            "'sae_binary_ext[delphi]'. Use a separate environment, because it installs vllm."
        ) from error


# Used to estimate tokens before the start, and for servers that do not count them.
CHARACTERS_A_TOKEN = 4
KEY_VARIABLE = "OPENAI_API_KEY"
# How often a request is repeated if the server's response is malformed.
MALFORMED_ASKED_AGAIN = 2
logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
Item = TypeVar("Item")
Scored = TypeVar("Scored")


class JudgeStoppedError(Exception):
    """The judge cannot be asked any more. The same command goes on where it stopped."""


class MalformedAnswerError(Exception):
    """The server's response has no answer. It counts as a failed answer."""


class Asked(Protocol):
    """Answers requests: a judge, or its rehearsal."""

    model: str

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The answer to messages; settings are temperature and max_tokens."""
        ...

    def check(self) -> None:
        """Raise JudgeStoppedError if it cannot be asked any more."""
        ...


class Judge:
    """Asks a server. It keeps answers in a file and sends no request twice.

    The key is read from the variable OPENAI_API_KEY and sent only to judge_url.

    Args:
        fields: settings; judge_url and judge_model must be set.
        answers: file of the answers, one a line. Tokens of answers in the file count as spent.

    Raises:
        ValueError: the package openai is not installed.
    """

    def __init__(self, fields: JudgeFields, answers: Path) -> None:
        self._openai, self._answers = imported("openai"), answers
        self._url, self.model = str(fields.judge_url), str(fields.judge_model)
        self.budget, self.parallel = fields.judge_tokens, fields.judge_parallel
        self._client = self._openai.AsyncOpenAI(
            base_url=self._url,
            api_key=os.environ.get(KEY_VARIABLE, "none"),
            timeout=fields.judge_timeout,
            max_retries=fields.judge_retries,
        )
        self._at_once = asyncio.Semaphore(self.parallel)
        self._known: dict[str, str] = {}
        self.spent = 0
        self._stopped: str | None = None
        self._only_reasoned = False
        if answers.is_file():
            self._take_up()

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The answer without reasoning; empty if the model wrote only reasoning.

        Raises:
            JudgeStoppedError: the budget is spent, or the server does not answer.
            MalformedAnswerError: the server's response holds no answer.
        """
        key = _key([self.model, messages, settings])
        if key in self._known:
            return self._answer(self._known[key])
        async with self._at_once:
            for _ in range(1 + MALFORMED_ASKED_AGAIN):
                self._check_going()
                try:
                    text, tokens = await self._request(messages, settings)
                except MalformedAnswerError as error:
                    logger.warning("judge: %s", error)
                    continue
                self._note(key, text, tokens)
                return self._answer(text)
        raise MalformedAnswerError(f"{self._url} sent no answer {1 + MALFORMED_ASKED_AGAIN} times.")

    def check(self) -> None:
        """Raise JudgeStoppedError if an earlier request stopped the judge."""
        if self._stopped is not None:
            raise JudgeStoppedError(self._stopped)

    def _answer(self, text: str) -> str:
        answer = without_reasoning(text)
        if not answer and not self._only_reasoned:
            self._only_reasoned = True
            logger.warning(
                "judge: %s gave an empty answer, or only reasoning; such answers count as failed. "
                "Turn its reasoning off, or choose a model without reasoning.",
                self.model,
            )
        return answer

    def _check_going(self) -> None:
        if self._stopped is None and self.spent >= self.budget:
            self._stopped = (
                f"judge_tokens={self.budget}: all are spent. Run the same command with more tokens."
            )
        self.check()

    async def _request(self, messages: Messages, settings: dict[str, Any]) -> tuple[str, int]:
        """The answer, and the tokens of request and answer."""
        try:
            response = await self._client.chat.completions.create(
                model=self.model, messages=messages, **settings
            )
            text = answer_in(response.choices[0].message)
        except self._openai.APIResponseValidationError as error:
            raise MalformedAnswerError(repr(error)) from error
        except self._openai.OpenAIError as error:
            # It failed after all retries, so the next request would fail too.
            self._stopped = f"judge_url={self._url}: {error} The same command goes on from here."
            raise JudgeStoppedError(self._stopped) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise MalformedAnswerError(repr(error)) from error
        if not isinstance(text, str):
            raise MalformedAnswerError(f"content is {text!r}")
        usage = getattr(response, "usage", None)
        return text, usage.total_tokens if usage else _tokens(messages) + len(
            text
        ) // CHARACTERS_A_TOKEN

    def _note(self, key: str, text: str, tokens: int) -> None:
        self._known[key] = text
        self.spent += tokens
        with self._answers.open("a") as file:
            file.write(json.dumps({"key": key, "text": text, "tokens": tokens}) + "\n")

    def _take_up(self) -> None:
        for entry in map(json.loads, whole_lines(self._answers)):
            self._known[entry["key"]] = entry["text"]
            self.spent += entry["tokens"]


class Rehearsal:
    """Gives the same answer to every request and counts requests, for an estimate."""

    model = "rehearsal"

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.requests = self.tokens = 0

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """Count the request; the answer is always the same."""
        self.requests += 1
        self.tokens += _tokens(messages) + len(self._answer) // CHARACTERS_A_TOKEN
        return self._answer

    def check(self) -> None:
        """A rehearsal never stops."""


def ask_about(
    items: Sequence[Item],
    judge: Judge,
    rehearsed_answer: str,
    score: Callable[[Asked, Item], Coroutine[Any, Any, Scored]],
    keep: Callable[[Scored], None],
) -> None:
    """Have a judge score items, several at once; first log how many tokens that takes.

    The estimate assumes rehearsed_answer, a valid answer of usual length. `keep` is called with
    each score as it comes.

    Raises:
        ValueError: the judge cannot be asked any more. Its answers so far are saved.
    """
    rehearsal = Rehearsal(rehearsed_answer)
    asyncio.run(_score_all(items, rehearsal, judge.parallel, score, lambda _: None))
    logger.info(
        "Asking %s about %d latents: %d requests of about %d tokens in all. Requests answered in "
        "earlier runs are not sent again. The budget is %d tokens, of which %d are spent.",
        judge.model,
        len(items),
        rehearsal.requests,
        rehearsal.tokens,
        judge.budget,
        judge.spent,
    )
    with tqdm(total=len(items), desc=judge.model, unit="latents") as progress:

        def keep_and_show(scored: Scored) -> None:
            keep(scored)
            progress.update()

        asyncio.run(_score_all(items, judge, judge.parallel, score, keep_and_show))
    try:
        judge.check()
    except JudgeStoppedError as error:
        raise ValueError(str(error)) from error


async def _score_all(
    items: Sequence[Item],
    judge: Asked,
    at_once: int,
    score: Callable[[Asked, Item], Coroutine[Any, Any, Scored]],
    keep: Callable[[Scored], None],
) -> None:
    """Score each item; if the judge stops, wait for the requests that were already sent."""
    limit = asyncio.Semaphore(at_once)

    async def one(item: Item) -> None:
        async with limit:
            try:
                keep(await score(judge, item))
            except JudgeStoppedError:
                return

    await asyncio.gather(*map(one, items))


def _tokens(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages) // CHARACTERS_A_TOKEN


def _key(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def open_judge(fields: JudgeFields, folder: Path) -> Judge | None:
    """The judge that the settings name, with its answers in folder; None if they name none."""
    named = fields.judge_url is not None and fields.judge_model is not None
    return Judge(fields, folder / "answers.jsonl") if named else None
