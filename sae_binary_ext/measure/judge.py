"""Asks a language model by the chat-completions protocol, and keeps its answers in a file."""

import asyncio
import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from sae_binary_ext.measure.saved_records import whole_lines
from sae_binary_ext.settings import JudgeFields

# Characters per token, to estimate tokens before the start or if the server does not count them.
CHARACTERS_A_TOKEN = 4
# Number of times that a request is repeated if the server's response is malformed.
MALFORMED_ASKED_AGAIN = 2
# Fields of a message that hold reasoning, and types of its parts that hold the answer.
REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
ANSWER_PARTS = ("text", "output_text")
logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
Item = TypeVar("Item")
Scored = TypeVar("Scored")

# Names of reasoning tags contain one of these words, for example inner_monologue, seed:think.
_ABOUT = r"(?:think|thought|reason|reflect|analys|monolog|deliberat|scratchpad)"
_NAME = rf"[\w:.-]*{_ABOUT}[\w:.-]*"
# Models write these tags into their answers if their server does not remove them.
_SPELLINGS = (
    (rf"<{_NAME}(?:\s[^<>]*)?(?<!/)>", rf"</{_NAME}\s*>"),
    (r"\[(?:think|thinking|reasoning)\]", r"\[/(?:think|thinking|reasoning)\]"),
    (r"◁think▷", r"◁/think▷"),
    (rf"<\|(?!end){_NAME}\|>", rf"<\|(?:end|/){_NAME}\|>"),
    (r"<\|channel\|?>\s*(?:analysis|thought)(?:<\|message\|>)?", r"<\|end\|>|<channel\|>"),
    (r"Here is my thought process:", r"Here is my response:"),
)
_FLAGS = re.IGNORECASE | re.DOTALL
# Tags around the answer, and empty reasoning tags. All of these tags are deleted.
_MARKS = re.compile(
    r"<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|return\|>"
    r"|<\|(?:begin|end)_of_solution\|>|</?(?:final[_-]?)?(?:answer|response|output|explanation|verdict)>"
    rf"|<{_NAME}\s*/>",
    _FLAGS,
)
# A block in tags of any name at the start of the text.
_FIRST_BLOCK = re.compile(r"<([\w:.-]+)(?:\s[^<>]*)?>(.*?)</\1\s*>(\s*)(?=\S)", _FLAGS)


class JudgeStoppedError(Exception):
    """The judge takes no more requests. The same command later continues where it stopped."""


class MalformedAnswerError(Exception):
    """The server's response holds no answer, so it counts as a failed answer."""


def imported(name: str) -> Any:
    """Import a module of delphi or of its dependencies; raise ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is not installed, and scores beyond the token baseline need it: pip install "
            "'sae_binary_ext[delphi]'. Use a separate environment, because it installs vllm."
        ) from error


class Judge:
    """Sends requests to the server that the settings name. No request is sent twice.

    Each line of the file `answers` is an answer. Tokens of answers in the file count as spent. The
    key is read from the variable OPENAI_API_KEY and sent only to judge_url. Raises ValueError if
    the package openai is not installed.
    """

    def __init__(self, fields: JudgeFields, answers: Path) -> None:
        self._openai, self._answers = imported("openai"), answers
        self._url, self.model = str(fields.judge_url), str(fields.judge_model)
        self.budget, self.parallel = fields.judge_tokens, fields.judge_parallel
        self._client = self._openai.AsyncOpenAI(
            base_url=self._url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=fields.judge_timeout,
            max_retries=fields.judge_retries,
        )
        self._at_once = asyncio.Semaphore(self.parallel)
        self._known: dict[str, str] = {}
        self.spent = 0
        self._stopped: str | None = None
        self._only_reasoned = False
        for entry in map(json.loads, whole_lines(answers) if answers.is_file() else ()):
            self._known[entry["key"]] = entry["text"]
            self.spent += entry["tokens"]

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """The answer without reasoning; empty if the model wrote only reasoning.

        Settings are temperature and max_tokens. Raises JudgeStoppedError if the budget is spent or
        the server does not answer, and MalformedAnswerError if the response holds no answer.
        """
        request = json.dumps([self.model, messages, settings], sort_keys=True)
        key = hashlib.sha256(request.encode()).hexdigest()
        if key not in self._known:
            async with self._at_once:
                text, tokens = await self._well_formed(messages, settings)
                self._known[key] = text
                self.spent += tokens
                with self._answers.open("a") as file:
                    file.write(json.dumps({"key": key, "text": text, "tokens": tokens}) + "\n")
        answer = without_reasoning(self._known[key])
        if not answer and not self._only_reasoned:
            self._only_reasoned = True
            logger.warning(
                "judge: %s gave an empty answer, or only reasoning; such answers count as failed. "
                "Turn its reasoning off, or choose a model without reasoning.",
                self.model,
            )
        return answer

    def check(self) -> None:
        """Raise JudgeStoppedError if an earlier request stopped the judge."""
        if self._stopped is not None:
            raise JudgeStoppedError(self._stopped)

    async def _well_formed(self, messages: Messages, settings: dict[str, Any]) -> tuple[str, int]:
        """Send a request, and repeat it if the response is malformed; arguments as for _request."""
        for _ in range(1 + MALFORMED_ASKED_AGAIN):
            if self._stopped is None and self.spent >= self.budget:
                self._stopped = (
                    f"judge_tokens={self.budget}: all are spent. Run the same command with more "
                    "tokens."
                )
            self.check()
            try:
                return await self._request(messages, settings)
            except MalformedAnswerError as error:
                logger.warning("judge: %s", error)
        raise MalformedAnswerError(f"{self._url} sent no answer {1 + MALFORMED_ASKED_AGAIN} times.")

    async def _request(self, messages: Messages, settings: dict[str, Any]) -> tuple[str, int]:
        """Returns the answer, and the number of tokens of request and answer."""
        try:
            response = await self._client.chat.completions.create(
                model=self.model, messages=messages, **settings
            )
            text = answer_in(response.choices[0].message)
        except self._openai.APIResponseValidationError as error:
            raise MalformedAnswerError(repr(error)) from error
        except self._openai.OpenAIError as error:
            # The request failed after all retries, so the next request would fail too.
            self._stopped = f"judge_url={self._url}: {error} The same command goes on from here."
            raise JudgeStoppedError(self._stopped) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise MalformedAnswerError(repr(error)) from error
        if not isinstance(text, str):
            raise MalformedAnswerError(f"content is {text!r}")
        usage = getattr(response, "usage", None)
        return text, usage.total_tokens if usage else _tokens(messages, text)


class Rehearsal:
    """Gives the same answer to every request and counts requests, for an estimate."""

    model = "rehearsal"

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.requests = self.tokens = 0

    async def ask(self, messages: Messages, **settings: Any) -> str:
        """Count the request and its tokens; return the answer, which is always the same."""
        self.requests += 1
        self.tokens += _tokens(messages, self._answer)
        return self._answer

    def check(self) -> None:
        """Do nothing, because a rehearsal never stops."""


Asked = Judge | Rehearsal


def ask_about(
    items: Sequence[Item],
    judge: Judge,
    rehearsed_answer: str,
    score: Callable[[Asked, Item], Coroutine[Any, Any, Scored]],
    keep: Callable[[Scored], None],
) -> None:
    """Have a judge score items, several at once, after logging an estimate of the tokens.

    The estimate assumes rehearsed_answer, a valid answer of usual length. `keep` is called with
    each score as it comes. Raises ValueError if the judge stopped; its answers so far are saved.
    """

    async def score_all(asked: Asked, keep_score: Callable[[Scored], None]) -> None:
        limit = asyncio.Semaphore(judge.parallel)

        async def one(item: Item) -> None:
            async with limit:
                # If the judge stops, wait for the requests that were already sent.
                with suppress(JudgeStoppedError):
                    keep_score(await score(asked, item))

        await asyncio.gather(*map(one, items))

    rehearsal = Rehearsal(rehearsed_answer)
    asyncio.run(score_all(rehearsal, lambda _: None))
    logger.info(
        f"Asking {judge.model} about {len(items)} latents: {rehearsal.requests} requests of about "
        f"{rehearsal.tokens} tokens in all. Requests answered in earlier runs are not sent again. "
        f"The budget is {judge.budget} tokens, of which {judge.spent} are spent."
    )
    with tqdm(total=len(items), desc=judge.model, unit="latents") as progress:

        def keep_and_show(scored: Scored) -> None:
            keep(scored)
            progress.update()

        asyncio.run(score_all(judge, keep_and_show))
    try:
        judge.check()
    except JudgeStoppedError as error:
        raise ValueError(str(error)) from error


def _tokens(messages: Messages, answer: str) -> int:
    """Tokens of a request and its answer, estimated from their characters."""
    asked = sum(len(message["content"]) for message in messages)
    return asked // CHARACTERS_A_TOKEN + len(answer) // CHARACTERS_A_TOKEN


def open_judge(fields: JudgeFields, folder: Path) -> Judge | None:
    """The judge that the settings name, with its answers in `folder`; None if no judge is named."""
    named = fields.judge_url is not None and fields.judge_model is not None
    return Judge(fields, folder / "answers.jsonl") if named else None


def without_reasoning(text: str) -> str:
    """The answer without its blocks of reasoning; empty if the text is only reasoning.

    A block without a closing tag was cut off, so it reaches to the end of the text. A block without
    an opening tag begins at the start of the text, because some servers put that tag into the
    request.

    A tag of another name counts as reasoning if its block is at the start of the text, an answer
    follows, and a line break is within or after the block. Markup inside an answer has no line
    break there.
    """
    for opening, closing in _SPELLINGS:
        inner = re.compile(rf"(?:{opening})(?:(?!{opening}).)*?(?:{closing})", _FLAGS)
        found = 1
        while found:  # innermost blocks first
            text, found = inner.subn("", text)
        text = re.split(closing, text, flags=_FLAGS)[-1]
        text = re.split(opening, text, maxsplit=1, flags=_FLAGS)[0]
    text = _MARKS.sub("", text).strip()
    while (block := _FIRST_BLOCK.match(text)) and "\n" in block[2] + block[3]:
        text = text[block.end() :]
    return text


def answer_in(message: Any) -> Any:
    """The text of a chat-completions message, without its fields and parts of reasoning.

    The text is empty if the message has only reasoning. Content that is not text is returned
    unchanged.
    """
    content = message.content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if part.get("type") in ANSWER_PARTS]
        return "".join(text for text in texts if isinstance(text, str))
    if content is None and any(getattr(message, field, None) for field in REASONING_FIELDS):
        return ""
    return content
