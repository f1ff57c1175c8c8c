"""ComSem gives tokens to latents, asks a judge about them, and computes a coder's figures."""

import asyncio
import math
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_binary_ext.commands import ComsemConfig, ComsemScore
from sae_binary_ext.commands.comsem.comsem_page import figures_of
from sae_binary_ext.commands.comsem.giving import GivenTokens, LatentTokens, give, prominence
from sae_binary_ext.commands.comsem.judging import (
    Questions,
    embedding_score,
    excerpt,
    language_model_score,
    questions_of,
)
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.judge import MalformedAnswerError
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.samples import CONTEXT_RADIUS
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

SIZES: dict[str, Any] = {"d_in": 4, "d_sae": 4, "k": 2}
BINARY, STOCK = BinarySAE(BinarySAEConfig(**SIZES)), TopKSAE(TopKSAEConfig(**SIZES))
WINDOW = 2 * CONTEXT_RADIUS + 1


def running_of(codes: Tensor) -> RunningLatents:
    running = RunningLatents(codes.shape[1])
    running.add(codes)
    return running


def test_of_binary_coders_an_absence_stands_out_as_a_rare_presence_does():
    # The four latents are active on 1, 7, 4 and 0 of 8 tokens.
    codes = (torch.arange(8)[:, None] < torch.tensor([1, 7, 4, 0])).float()
    found = prominence(BINARY, codes, running_of(codes))
    assert found[0].tolist() == pytest.approx([math.log2(7 / 8), -3, -1, -math.inf])
    assert found[7].tolist() == pytest.approx([-3, math.log2(7 / 8), -1, -math.inf])
    assert give(found, 1)[[0, 7]].nonzero().tolist() == [[0, 0], [1, 1]]


def test_of_others_it_is_the_value_in_deviations_whatever_its_scale():
    codes = torch.randn(50, 4).relu()
    codes[:, 3] = 0
    found = prominence(STOCK, codes, running_of(codes))
    expected = (codes - codes.mean(0)) / codes.std(0, correction=0)
    torch.testing.assert_close(found[:, :3], expected[:, :3], rtol=1e-4, atol=1e-5)
    assert (found[:, 3] == -math.inf).all()
    scaled = codes * torch.tensor([10.0, 0.2, 3, 1])
    torch.testing.assert_close(prominence(STOCK, scaled, running_of(scaled)), found)


def test_a_token_goes_to_so_many_latents_and_never_to_dead_ones():
    scores = torch.randn(30, 12)
    scores[:, 5] = -math.inf
    given = give(scores, 4)
    assert given.sum(1).tolist() == [4] * 30
    assert not given[:, 5].any()
    assert (
        scores.masked_fill(~given, math.inf).amin(1) >= scores.masked_fill(given, -9).amax(1)
    ).all()
    few = torch.full((3, 12), -math.inf)
    few[:, 2] = 0
    assert give(few, 4).nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]


def test_among_equal_latents_the_first_are_not_preferred():
    found = give(torch.zeros(1, 1000), 10)[0].nonzero()[:, 0]
    assert found.float().mean().item() == pytest.approx(500, abs=250)


def read(rows: int, length: int, given: Tensor, codes: Tensor) -> GivenTokens:
    """Give tokens of rows to latents; a token's id is 1000 x row + position."""
    found = GivenTokens(given.shape[-1], given.shape[-1], 6)
    tokens = 1000 * torch.arange(rows)[:, None] + torch.arange(length)
    text = TextBatch(tokens, torch.full((rows,), length), list(range(rows)))
    where = text.positions(1)
    found.add(text, where, codes[where], given[where])
    return found


def test_own_tokens_and_others_are_drawn_from_all_of_the_text():
    given = torch.rand(40, 30, 2) < torch.tensor([0.3, 0.0])
    codes = given.float()
    codes[:20] = 0  # these tokens are given to the latent although it is silent
    found = read(40, 30, given, codes)
    first, second = found.tokens_of(0), found.tokens_of(1)
    assert first.given == int(given[:, 1:, 0].sum())
    assert first.absent == pytest.approx(int(given[:20, 1:, 0].sum()) / first.given)
    centre = first.own[:, CONTEXT_RADIUS]
    assert len(centre) == len(set(centre.tolist())) == 6
    assert all(given[token // 1000, token % 1000, 0] for token in centre.tolist())
    others = first.others[:, CONTEXT_RADIUS].tolist()
    assert not any(given[token // 1000, token % 1000, 0] for token in others)
    # The samples are not just the first tokens of the text.
    assert centre.max() // 1000 > 10
    assert (second.given, len(second.own), len(second.others)) == (0, 0, 6)


def text(token: int) -> str:
    return f" w{token}" if token else "\n"


def window(*tokens: int) -> Tensor:
    found = torch.full((WINDOW,), -1)
    start = CONTEXT_RADIUS - len(tokens) // 2
    found[start : start + len(tokens)] = torch.tensor(tokens)
    return found


def test_an_excerpt_marks_the_token_on_one_line():
    assert excerpt(window(1, 2, 3), text) == "w1 <<w2>> w3"
    assert excerpt(window(1, 0, 2, 3, 4), text) == "w1  <<w2>> w3 w4".replace("  ", "  ")


def tokens_of(own: int, others: int) -> LatentTokens:
    each = [
        torch.stack([window(9, number, 9) for number in range(1, 1 + n)]) for n in (own, others)
    ]
    return LatentTokens(3, own, 0.25, *each)


def test_tokens_are_dealt_to_show_and_to_ask():
    questions = questions_of(tokens_of(9, 9), text, 3, 4)
    assert questions is not None
    marked = [
        [each.split("<<")[1].split(">>")[0] for each in group] for group in vars(questions).values()
    ]
    assert marked == [["w1", "w2", "w3"]] * 2 + [["w4", "w5", "w6", "w7"]] * 2


@pytest.mark.parametrize(("own", "others"), [(3, 9), (9, 3), (0 + 1, 1)])
def test_a_latent_of_too_few_tokens_is_asked_nothing(own: int, others: int):
    assert questions_of(tokens_of(own, others), text, 3, 4) is None


class Scripted:
    """A judge that gives these answers in order, and an error for None."""

    model = "scripted"

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []

    async def ask(self, messages: list[dict[str, str]], **settings: Any) -> str:
        self.requests.append(messages[0]["content"])
        answer = self.answers.pop(0)
        if answer is None:
            raise MalformedAnswerError("nothing")
        return answer

    def check(self) -> None:
        pass


QUESTIONS = Questions(["<<a>>", "<<b>>"], ["<<x>>"], ["<<c>>", "<<d>>"], ["<<y>>", "<<z>>"])
UNSCORED = ComsemScore("coder", 3, 9, 0.25)


def asked(*answers: str | None) -> tuple[ComsemScore, Scripted]:
    judge = Scripted(*answers)
    return asyncio.run(language_model_score(judge, UNSCORED, QUESTIONS)), judge


def test_a_score_is_the_share_of_yes_of_own_tokens_beside_that_of_others():
    score, judge = asked('"Letters."\nAs you see', "Yes.", "no", "NO", "yes")
    assert (score.fitting, score.others_fitting, score.answered) == (0.5, 0.5, 4)
    assert score.phrase == "Letters"
    assert (score.latent, score.given, score.absent, score.failed) == (3, 9, 0.25, 0)
    assert all(each in judge.requests[0] for each in ("<<a>>", "<<b>>"))
    for request, mark in zip(judge.requests[1:], "cdyz", strict=True):
        assert f"<<{mark}>>" in request
        assert "Letters" in request


def test_unreadable_answers_are_failed_and_in_no_share():
    score, _ = asked("letters", "perhaps", "yes", None, "no")
    assert (score.fitting, score.others_fitting) == (1, 0)
    assert (score.answered, score.failed, score.reason) == (2, 2, None)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ((None,), "the phrase failed"),
        (("  ",), "the phrase failed"),
        (("letters", "yes", "?", "?", "?"), "answers failed"),
        (("letters", "yes", "yes", "?", "?"), "answers failed"),
    ],
)
def test_where_answers_fail_there_is_no_score(answers: tuple[str | None, ...], reason: str):
    score, _ = asked(*answers)
    assert score.fitting is score.others_fitting is None
    assert score.reason == reason
    assert score.failed > 0


class Letters:
    """Embeddings that depend on the marked letter: alike within each half of the alphabet."""

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([[1.0, 0.1] if each[2] < "n" else [0.1, 2.0] for each in texts])


def test_an_embedding_tells_what_reads_like_the_tokens_shown():
    score = embedding_score(Letters(), UNSCORED, QUESTIONS)
    assert (score.fitting, score.others_fitting, score.answered) == (1, 0, 4)
    mixed = Questions(["<<a>>"], ["<<x>>"], ["<<c>>", "<<s>>"], ["<<b>>", "<<z>>"])
    score = embedding_score(Letters(), UNSCORED, mixed)
    assert (score.fitting, score.others_fitting) == (0.5, 0.5)


def test_figures_are_shares_of_all_latents_drawn():
    pairs = [(1.0, 0.0), (0.8, 0.9), (0.5, 0.1), (None, None)]
    scores = [
        ComsemScore("coder", place, 9, 0.0, fitting, others, failed=1)
        for place, (fitting, others) in enumerate(pairs)
    ]
    (found,) = figures_of(scores, 0.75)
    assert (found.drawn, found.scored, found.failed) == (4, 3, 4)
    assert found.interpretable.value == 0.5
    assert found.told_apart.value == 0.25
    assert found.fitting.value == pytest.approx(2.3 / 3)
    assert found.others_fitting.value == pytest.approx(1 / 3)
    assert found.interpretable.low < 0.5 < found.interpretable.high


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shown": 1}, "shown=1"),
        ({"asked": 0}, "asked=0"),
        ({"interpretable_at": 0.5}, "interpretable_at=0.5"),
        ({"judge_url": "http://127.0.0.1/v1"}, "give both, or neither"),
        ({"judge_timeout": 0.0}, "judge_timeout=0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ComsemConfig(**fields)
