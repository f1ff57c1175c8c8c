"""`sae-binary comsem`: gives tokens to latents, and asks a judge what a latent's tokens share."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.comsem import judging
from sae_binary_ext.commands.comsem.comsem_page import comsem_page
from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.comsem.giving import GivenTokens, give, prominence
from sae_binary_ext.commands.comsem.judging import ComsemScore, Questions
from sae_binary_ext.commands.comsem.logit_lens import name_latents
from sae_binary_ext.commands.comsem.logit_lens_page import logit_lens_page
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL, Embeddings, TokenText
from sae_binary_ext.measure.documents import token_texts
from sae_binary_ext.measure.judge import Asked, Judge, ask_about, open_judge
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders

TOO_FEW = "given too few tokens"
REHEARSED_ANSWER = "yes, words that have something in common"


def run_comsem(coders: list[str], config: ComsemConfig) -> Analysis:
    """Score what latents' tokens have in common, or name latents without a judge (config.decode).

    Arguments and errors are those of analyse_coders.

    Also raises ValueError if a package is missing, if the language model stops answering, or if the
    model has no output of its last block (decode="logit_lens").
    """
    if config.decode == "logit_lens":
        return analyse_coders(coders, config, name_latents, logit_lens_page)
    config.output.mkdir(parents=True, exist_ok=True)
    # Open the judge first, so that a missing package is reported before minutes of reading.
    judge = open_comsem_judge(config)

    def measure(opened: OpenedModel, config: ComsemConfig) -> list[ComsemScore]:
        given = _given_tokens(opened, config)
        return score_latents(given, token_texts(opened.tokenizer), config, judge)

    return analyse_coders(coders, config, measure, comsem_page)


def open_comsem_judge(config: ComsemConfig) -> Judge | Embeddings:
    """The language model that the settings name, or else a sentence embedding."""
    return open_judge(config, config.output) or Embeddings(config.device)


def score_latents(
    given: Mapping[str, GivenTokens],
    text: TokenText,
    config: ComsemConfig,
    judge: Judge | Embeddings,
) -> list[ComsemScore]:
    """Scores of the drawn latents of each coder, by coder and latent; `given` is by coder."""
    scores: list[ComsemScore] = []
    asking: list[tuple[ComsemScore, Questions]] = []
    for coder, found in given.items():
        for tokens in map(found.tokens_of, range(len(found.latents))):
            score = ComsemScore(coder, tokens.latent, tokens.given, tokens.absent)
            questions = judging.questions_of(tokens, text, config.shown, config.asked)
            if questions is None:
                scores.append(replace(score, reason=TOO_FEW))
            else:
                asking.append((score, questions))
    if isinstance(judge, Embeddings):
        for item in tqdm(asking, EMBEDDING_MODEL, unit="latents"):
            scores.append(judging.embedding_score(judge, *item))
            judge.forget()
    else:

        async def ask(asked: Asked, item: tuple[ComsemScore, Questions]) -> ComsemScore:
            return await judging.language_model_score(asked, *item)

        ask_about(asking, judge, REHEARSED_ANSWER, ask, scores.append)
    return sorted(scores, key=lambda score: (list(given).index(score.coder), score.latent))


def _given_tokens(opened: OpenedModel, config: ComsemConfig) -> dict[str, GivenTokens]:
    """Read the text once for the latents' means, and again to give tokens to latents."""

    def codes(description: str) -> Iterator[tuple[str, Any, Tensor, ReadBatch]]:
        for batch in read_text(opened, config, description):
            for each in opened.candidates:
                source, _ = opened.hooks[each.site]
                yield each.name, each.coder, batch.codes(each.coder, source).cpu().float(), batch

    widths = {each.name: each.coder.cfg.d_sae for each in opened.candidates}
    running = {name: RunningLatents(width) for name, width in widths.items()}
    for name, _, found, _ in codes("Means"):
        running[name].add(found)
    most = config.shown + config.asked
    given = {name: GivenTokens(width, config.latents, most) for name, width in widths.items()}
    for name, coder, found, batch in codes("Giving tokens"):
        given_now = give(prominence(coder, found, running[name]), config.burstiest)
        given[name].add(batch.text, batch.where, found, given_now)
    return given
