"""A language model or an embedding judges whether tokens of a latent have something in common."""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_binary_ext.commands.comsem.giving import LatentTokens
from sae_binary_ext.commands.interpret.with_delphi import Embeddings, TokenText
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
class ComsemScore:
    """Score of one latent of a coder.

    Attributes:
        given: tokens of the text that were given to the latent.
        absent: share of the given tokens on which the latent is silent.
        fitting: share of the latent's own tokens that the phrase fits, the paper's score.
        others_fitting: share of tokens not given to the latent that the phrase fits.
        answered: number of answers from which both shares are computed.
        failed: number of answers that did not come or could not be read; no share counts them.
        phrase: what the latent's tokens have in common, in the words of a language model.
        reason: why both shares are None; None if both are numbers.
    """

    coder: str
    latent: int
    given: int
    absent: float
    fitting: float | None = None
    others_fitting: float | None = None
    answered: int = 0
    failed: int = 0
    phrase: str | None = None
    reason: str | None = None

    def interpretable(self, at: float) -> bool:
        """Whether the phrase fits at least this share of the latent's own tokens."""
        return self.fitting is not None and self.fitting >= at

    def told_apart(self, at: float) -> bool:
        """Whether the latent is interpretable, and its phrase fits at most 1 - at of other tokens.

        A phrase that fits every token says nothing about the latent.
        """
        others = self.others_fitting
        return self.interpretable(at) and others is not None and others <= 1 - at


@dataclass(frozen=True)
class Questions:
    """Excerpts for one latent: a judge learns from shown and silent, and is asked about the rest.

    Excerpts in `shown` and `asked` are around tokens of the latent. Excerpts in `silent` and
    `others` are around other tokens, in the same numbers.
    """

    shown: list[str]
    silent: list[str]
    asked: list[str]
    others: list[str]


def excerpt(window: Tensor, text: TokenText) -> str:
    """The text of a window on one line, with its middle token between << and >>.

    The window has tokens, int64 [2 * CONTEXT_RADIUS + 1], and -1 beyond the ends of a row.
    """
    pieces = [text(token) if token >= 0 else "" for token in window.tolist()]
    marked = pieces[CONTEXT_RADIUS]
    # Keep the space before a word outside the marks.
    word = marked.lstrip(" ")
    pieces[CONTEXT_RADIUS] = f"{marked[: len(marked) - len(word)]}<<{word}>>"
    return " ".join("".join(pieces).split("\n")).strip()


def questions_of(tokens: LatentTokens, text: TokenText, shown: int, asked: int) -> Questions | None:
    """Excerpts of a latent for a judge, or None if too few tokens were given to the latent.

    The first tokens are used, because they are in random order already.
    """
    if len(tokens.own) <= shown or len(tokens.others) <= shown:
        return None
    own, others = (
        [excerpt(window, text) for window in windows[: shown + asked]]
        for windows in (tokens.own, tokens.others)
    )
    number = min(len(own), len(others))
    return Questions(own[:shown], others[:shown], own[shown:number], others[shown:number])


async def language_model_score(
    judge: Asked, score: ComsemScore, questions: Questions
) -> ComsemScore:
    """Fill in a score: a model says what the tokens share, and whether that fits other tokens."""
    answer = await _answer(judge, "\n".join([COMMON, "", *questions.shown]), PHRASE_TOKENS)
    phrase = next(iter(answer.strip().splitlines()), "").strip(" \"'.")[:LONGEST_PHRASE]
    if not phrase:
        return replace(score, failed=1, reason="the phrase failed")

    async def fits(excerpts: list[str]) -> list[bool]:
        requests = [FITS.format(phrase=phrase, excerpt=each) for each in excerpts]
        found = [ANSWER.match(await _answer(judge, each, ANSWER_TOKENS)) for each in requests]
        return [each[1].lower() == "yes" for each in found if each is not None]

    own, others = await fits(questions.asked), await fits(questions.others)
    answered, asked = len(own) + len(others), len(questions.asked) + len(questions.others)
    score = replace(score, phrase=phrase, failed=asked - answered, answered=answered)
    if score.failed > asked / 2 or not own or not others:
        return replace(score, reason="answers failed")
    return replace(score, fitting=sum(own) / len(own), others_fitting=sum(others) / len(others))


async def _answer(judge: Asked, request: str, most: int) -> str:
    """The judge's answer of at most `most` tokens; empty if the server sent none."""
    messages = [{"role": "user", "content": request}]
    try:
        return await judge.ask(messages, temperature=0.0, max_tokens=most)
    except MalformedAnswerError:
        return ""


def embedding_score(
    embeddings: Embeddings, score: ComsemScore, questions: Questions
) -> ComsemScore:
    """Fill in a score without a language model.

    An excerpt fits if its embedding has a larger cosine with the mean of `shown` than with the mean
    of `silent`.
    """
    groups = (questions.shown, questions.silent, questions.asked, questions.others)
    encoded = (torch.as_tensor(embeddings.encode(group)).float() for group in groups)
    shown, silent, *asked = (normalize(each, dim=1) for each in encoded)
    direction = normalize(shown.mean(0), dim=0) - normalize(silent.mean(0), dim=0)
    own, others = ((each @ direction > 0).double().mean().item() for each in asked)
    answered = len(questions.asked) + len(questions.others)
    return replace(score, fitting=own, others_fitting=others, answered=answered)
