"""A language model that judges, behind the chat-completions protocol; each thing is asked once."""

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
    """A module of delphi or of what comes with it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is not installed. For scores beyond the token baseline: pip install "
            "'sae_binary_ext[delphi]', in an environment of its own, for it brings vllm."
        ) from error


# Of an answer whose server does not say; for the estimate before the start, too.
CHARACTERS_A_TOKEN = 4
KEY_VARIABLE = "OPENAI_API_KEY"
# A server may answer with something that is no answer: asked again so often.
MALFORMED_ASKED_AGAIN = 2
logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
Item = TypeVar("Item")
Scored = TypeVar("Scored")


class JudgeStoppedError(Exception):
    """The judge cannot be asked any more: the run stops, and can be gone on with."""


class MalformedAnswerError(Exception):
    """The server answered, and what it sent is no answer; counted as failed."""


class Asked(Protocol):
    """Whoever answers."""

    model: str

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The answer to messages; settings are temperature and max_tokens."""
        ...

    def check(self) -> None:
        """Raise JudgeStoppedError where it cannot be asked any more."""
        ...


class Judge:
    """Asks a server; what was answered before is in a file, and not asked again.

    The key is read from the variable OPENAI_API_KEY, and goes to the server alone.

    Args:
        url: of the protocol, up to and without /chat/completions.
        model: its name there.
        answers: file of the answers, a line each.
        budget: tokens, read and written, after which nothing more is asked; those of the answers in
            the file count.
        parallel: requests at once.
        timeout: seconds to wait for an answer.
        retries: of a request that failed on its way, or that the server put off.

    Raises:
        ValueError: the package openai is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        answers: Path,
        budget: int,
        parallel: int,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        openai = imported("openai")
        self.model = model
        self.budget, self.parallel = budget, parallel
        self._openai, self._answers, self._url = openai, answers, url
        key = os.environ.get(KEY_VARIABLE, "none")
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=key, timeout=timeout, max_retries=retries
        )
        self._at_once = asyncio.Semaphore(parallel)
        self._known: dict[str, str] = {}
        self.spent = 0
        self._stopped: str | None = None
        self._only_reasoned = False
        if answers.is_file():
            self._take_up()

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The answer, without what the model wrote as reasoning; empty where that is all.

        Raises:
            JudgeStoppedError: the budget is spent, or the server does not answer.
            MalformedAnswerError: what it sends is no answer.
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
        """Raise JudgeStoppedError where a request has found that it cannot go on."""
        if self._stopped is not None:
            raise JudgeStoppedError(self._stopped)

    def _answer(self, text: str) -> str:
        answer = without_reasoning(text)
        if not answer and not self._only_reasoned:
            self._only_reasoned = True
            logger.warning(
                "judge: %s answered with nothing, or with reasoning alone; such answers count as "
                "failed. Turn its reasoning off, or choose a model without.",
                self.model,
            )
        return answer

    def _check_going(self) -> None:
        if self._stopped is None and self.spent >= self.budget:
            self._stopped = (
                f"judge_tokens={self.budget}: are spent. The same command with more goes on."
            )
        self.check()

    async def _request(self, messages: Messages, settings: dict[str, Any]) -> tuple[str, int]:
        """The answer and the tokens it took."""
        try:
            response = await self._client.chat.completions.create(
                model=self.model, messages=messages, **settings
            )
            text = answer_in(response.choices[0].message)
        except self._openai.APIResponseValidationError as error:
            raise MalformedAnswerError(repr(error)) from error
        except self._openai.OpenAIError as error:
            # One that fails after all retries: the next would fail likewise.
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
    """Answers nothing of use and counts what it is asked, for an estimate before the start.

    Args:
        answer: to everything.
    """

    model = "rehearsal"

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.requests = self.tokens = 0

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The same to everything."""
        self.requests += 1
        self.tokens += _tokens(messages) + len(self._answer) // CHARACTERS_A_TOKEN
        return self._answer

    def check(self) -> None:
        """It can always be asked."""


def ask_about(
    items: Sequence[Item],
    judge: Judge,
    rehearsed_answer: str,
    score: Callable[[Asked, Item], Coroutine[Any, Any, Scored]],
    keep: Callable[[Scored], None],
) -> None:
    """Have a judge score latents, some at once; first say what that takes.

    Args:
        items: the latents, in whatever form.
        judge: whom to ask.
        rehearsed_answer: about as long as an answer is, and readable as one.
        score: of one item, by whoever answers.
        keep: called with each item's score as it comes.

    Raises:
        ValueError: the judge cannot be asked any more; what it answered was kept.
    """
    rehearsal = Rehearsal(rehearsed_answer)
    asyncio.run(_score_all(items, rehearsal, judge.parallel, score, lambda _: None))
    logger.info(
        "Asking %s about %d latents: %d requests of some %d tokens in all; what was answered "
        "before is not asked again. At most %d tokens are spent, %d of them before.",
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
    """Score each item and keep its score when it is done.

    Once the judge has stopped, what was sent is waited for: its answers need not be asked again.
    """
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
    """The language model that the settings name; None if they name none.

    Args:
        fields: the settings.
        folder: where its answers are kept.

    Raises:
        ValueError: the package openai is not installed.
    """
    if fields.judge_url is None or fields.judge_model is None:
        return None
    return Judge(
        fields.judge_url,
        fields.judge_model,
        folder / "answers.jsonl",
        fields.judge_tokens,
        fields.judge_parallel,
        fields.judge_timeout,
        fields.judge_retries,
    )
