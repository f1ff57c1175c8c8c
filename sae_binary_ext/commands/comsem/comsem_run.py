"""`sae-binary comsem`: give tokens to latents, and have a judge say what each latent's share."""

from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.comsem.comsem_page import comsem_page
from sae_binary_ext.commands.comsem.comsem_scores import ComsemScore
from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.commands.comsem.giving import GivenTokens, LatentTokens, give, prominence
from sae_binary_ext.commands.comsem.judging import (
    LanguageModelJudge,
    Questions,
    embedding_score,
    questions_of,
    unscored,
)
from sae_binary_ext.commands.interpret.with_delphi import EMBEDDING_MODEL, Embeddings
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import token_texts
from sae_binary_ext.measure.judge import Asked, Judge, ask_about, open_judge
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.reading import OpenedModel, ReadBatch, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders

REHEARSED_ANSWER = "yes, words that have something in common"
Asking = list[tuple[str, LatentTokens, Questions]]


def run_comsem(coders: list[str], config: ComsemConfig) -> Analysis:
    """Score what latents' tokens have in common; arguments and errors as analyse_coders has them.

    Raises:
        ValueError: also if a package is missing, or the language model cannot be asked any more.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    # The judge is opened first, so that a missing package is known before minutes of reading.
    judge: Judge | Embeddings = open_judge(config, config.output) or Embeddings(config.device)
    return analyse_coders(
        coders, config, lambda opened, config: _scores(opened, config, judge), comsem_page
    )


def _scores(
    opened: OpenedModel, config: ComsemConfig, judge: Judge | Embeddings
) -> list[ComsemScore]:
    given = _given_tokens(opened, config)
    text = token_texts(opened.tokenizer)
    scores: list[ComsemScore] = []
    asking: Asking = []
    for coder, found in given.items():
        for place in range(len(found.latents)):
            tokens = found.tokens_of(place)
            questions = questions_of(tokens, text, config.shown, config.asked)
            if questions is None:
                scores.append(unscored(coder, tokens))
            else:
                asking.append((coder, tokens, questions))
    scores += _embedded(judge, asking) if isinstance(judge, Embeddings) else _asked(judge, asking)
    return sorted(scores, key=lambda score: (list(given).index(score.coder), score.latent))


def _given_tokens(opened: OpenedModel, config: ComsemConfig) -> dict[str, GivenTokens]:
    """Read the text once for the latents' means, and once more to give tokens to latents."""
    running = {each.name: RunningLatents(each.coder.cfg.d_sae) for each in opened.candidates}
    for batch in read_text(opened, config, "Means"):
        for candidate in opened.candidates:
            running[candidate.name].add(_codes(candidate, opened, batch))
    most = config.shown + config.asked
    given = {
        each.name: GivenTokens(each.coder.cfg.d_sae, config.latents, most)
        for each in opened.candidates
    }
    for batch in read_text(opened, config, "Giving tokens"):
        for candidate in opened.candidates:
            codes = _codes(candidate, opened, batch)
            scores = prominence(candidate.coder, codes, running[candidate.name])
            found = give(scores, config.burstiest)
            given[candidate.name].add(batch.text, batch.where, codes, found)
    return given


def _codes(candidate: Candidate, opened: OpenedModel, batch: ReadBatch) -> Tensor:
    source, _ = opened.hooks[candidate.site]
    return batch.codes(candidate.coder, source).cpu().float()


def _embedded(embeddings: Embeddings, asking: Asking) -> list[ComsemScore]:
    scores: list[ComsemScore] = []
    for item in tqdm(asking, EMBEDDING_MODEL, unit="latents"):
        scores.append(embedding_score(embeddings, *item))
        embeddings.forget()
    return scores


def _asked(judge: Judge, asking: Asking) -> list[ComsemScore]:
    scores: list[ComsemScore] = []

    async def score(asked: Asked, item: tuple[str, LatentTokens, Questions]) -> ComsemScore:
        return await LanguageModelJudge(asked).score(*item)

    ask_about(asking, judge, REHEARSED_ANSWER, score, scores.append)
    return scores
