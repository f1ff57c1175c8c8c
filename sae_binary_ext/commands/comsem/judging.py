"""A language model or an embedding judges whether tokens of a latent have something in common."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_binary_ext.commands.comsem.comsem_scores import TOO_FEW, ComsemScore
from sae_binary_ext.commands.comsem.giving import LatentTokens
from sae_binary_ext.measure.judge import Asked, MalformedAnswerError
from sae_binary_ext.measure.samples import CONTEXT_RADIUS

PHRASE_TOKENS, ANSWER_TOKENS = 60, 10
LONGEST_PHRASE = 200
ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
COMMON = (
    "Below are excerpts from texts, one a line. In each, one piece of a word or a whole word "
    "stands between << and >>. Say in one short phrase what the marked pieces, as they are used "
    "there, have in common. Be as specific as all of them allow: a phrase that would fit nearly "
    "any word is of no use. Answer with the phrase alone."
)
FITS = (
    "Here is a description: {phrase}\n\nDoes it fit the piece of text between << and >>, as it is "
    "used in this excerpt?\n\n{excerpt}\n\nAnswer yes or no, and nothing else."
)


@dataclass(frozen=True)
class Questions:
    """Excerpts about one latent.

    Attributes:
        shown: excerpts around tokens of the latent, from which a judge learns.
        silent: as many excerpts around other tokens.
        asked: more excerpts around tokens of the latent, which a judge is asked about.
        others: as many excerpts around other tokens, which it is asked about too.
    """

    shown: list[str]
    silent: list[str]
    asked: list[str]
    others: list[str]


class EmbedsTexts(Protocol):
    """An embedding of texts."""

    def encode(self, texts: list[str]) -> Any:
        """Embeddings, float32 [texts, width]."""
        ...


def excerpt(window: Tensor, text: Callable[[int], str]) -> str:
    """A token between << and >> in its text, on one line.

    Args:
        window: int64 [2 * CONTEXT_RADIUS + 1], tokens; -1 beyond a row's ends.
        text: gives the text of a token.
    """
    pieces = [text(token) if token >= 0 else "" for token in window.tolist()]
    marked = pieces[CONTEXT_RADIUS]
    # The space before a word stays outside the marks.
    word = marked.lstrip(" ")
    pieces[CONTEXT_RADIUS] = f"{marked[: len(marked) - len(word)]}<<{word}>>"
    return " ".join("".join(pieces).split("\n")).strip()


def questions_of(
    tokens: LatentTokens, text: Callable[[int], str], shown: int, asked: int
) -> Questions | None:
    """Excerpts of a latent for a judge, or None if it was given too few tokens.

    The first tokens are used: they are in random order already.
    """
    if len(tokens.own) <= shown or len(tokens.others) <= shown:
        return None
    own, others = (
        [excerpt(window, text) for window in windows[: shown + asked]]
        for windows in (tokens.own, tokens.others)
    )
    number = min(len(own), len(others))
    return Questions(own[:shown], others[:shown], own[shown:number], others[shown:number])


def unscored(coder: str, tokens: LatentTokens) -> ComsemScore:
    """The entry of a latent that was given too few tokens."""
    return ComsemScore(coder, tokens.latent, tokens.given, tokens.absent, reason=TOO_FEW)


class LanguageModelJudge:
    """A language model says what tokens have in common, and whether that fits other tokens."""

    def __init__(self, judge: Asked) -> None:
        self._judge = judge

    async def score(self, coder: str, tokens: LatentTokens, questions: Questions) -> ComsemScore:
        """Score one latent.

        Raises:
            JudgeStoppedError: the judge cannot be asked any more.
        """
        score = ComsemScore(coder, tokens.latent, tokens.given, tokens.absent)
        phrase = await self._phrase(questions.shown)
        if phrase is None:
            return replace(score, failed=1, reason="the phrase failed")
        own = [await self._fits(phrase, each) for each in questions.asked]
        others = [await self._fits(phrase, each) for each in questions.others]
        failed = own.count(None) + others.count(None)
        answers = [answer for answer in own + others if answer is not None]
        score = replace(score, phrase=phrase, failed=failed, answered=len(answers))
        if failed > len(own + others) / 2 or None in (_share(own), _share(others)):
            return replace(score, reason="answers failed")
        return replace(score, fitting=_share(own), others_fitting=_share(others))

    async def _phrase(self, shown: list[str]) -> str | None:
        request = "\n".join([COMMON, "", *shown])
        answer = await self._answer(request, PHRASE_TOKENS)
        lines = (answer or "").strip().splitlines()
        return lines[0].strip(" \"'.")[:LONGEST_PHRASE] or None if lines else None

    async def _fits(self, phrase: str, asked: str) -> bool | None:
        answer = await self._answer(FITS.format(phrase=phrase, excerpt=asked), ANSWER_TOKENS)
        found = ANSWER.match(answer or "")
        return None if found is None else found[1].lower() == "yes"

    async def _answer(self, request: str, most: int) -> str | None:
        messages = [{"role": "user", "content": request}]
        try:
            return await self._judge.ask(messages, temperature=0.0, max_tokens=most)
        except MalformedAnswerError:
            return None


def embedding_score(
    embeddings: EmbedsTexts, coder: str, tokens: LatentTokens, questions: Questions
) -> ComsemScore:
    """Score one latent without a language model.

    An excerpt fits if its embedding has a larger cosine with the mean of `shown` than with the
    mean of `silent`.

    Args:
        embeddings: an embedding of sentences.
        coder: name of the coder.
        tokens: tokens of the latent.
        questions: excerpts around them.
    """
    groups = (questions.shown, questions.silent, questions.asked, questions.others)
    found = [
        torch.nn.functional.normalize(torch.as_tensor(embeddings.encode(group)).float(), dim=1)
        for group in groups
    ]
    shown, silent = (torch.nn.functional.normalize(each.mean(0), dim=0) for each in found[:2])
    own, others = ((each @ (shown - silent) > 0).double().mean().item() for each in found[2:])
    answered = len(questions.asked) + len(questions.others)
    facts = coder, tokens.latent, tokens.given, tokens.absent
    return ComsemScore(*facts, fitting=own, others_fitting=others, answered=answered)


def _share(answers: list[bool | None]) -> float | None:
    known = [answer for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None
