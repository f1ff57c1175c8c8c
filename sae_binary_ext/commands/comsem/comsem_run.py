"""`sae-binary comsem` from start to end: coders, text, tokens given, judge, files."""

from dataclasses import asdict
from random import Random

import plotly.graph_objects as go
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.comsem.comsem_scores import ComsemFigures, ComsemScore, figures_of
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
from sae_binary_ext.measure.reading import (
    OpenedModel,
    ReadBatch,
    open_coders,
    read_text,
    settings_of,
)
from sae_binary_ext.report import Analysis, Column, Table, write_analysis
from sae_binary_ext.report.plots import error_bars

REHEARSED_ANSWER = "yes, words that have something in common"
REMARKS = (
    "Each token is given to the latents that stand out most on it: of binary coders by burstiness, "
    "log2 |h - mean of h|, of coders with values by the value in standard deviations from its "
    "mean. Some of a latent's tokens, drawn at random, tell the judge what they have in common; "
    "others ask whether it fits, and so do as many tokens that were not given to it.",
    "Fitting is the paper's score. By itself it counts phrases that fit any token: told apart "
    "counts a latent only where its own tokens fit and others do not. Both are shares of all "
    "latents drawn, those included that were given too few tokens to be asked about.",
    "An embedding of the excerpt stands for what a language model would say where none was named: "
    "it tells topics apart better than the roles of words, and knows no phrase; half of all tokens "
    "fit by chance. Scores of different judges are not to be compared. Brackets: 95% of bootstrap "
    "replicates over latents.",
)
COLUMNS: tuple[Column, ...] = (
    Column("coder"),
    Column("drawn", "Latents drawn at random, dead ones too.", "d"),
    Column("scored", "Latents that were given enough tokens, and have answers.", "d"),
    Column("interpretable", "Share of the drawn whose own tokens fit.", ".0%"),
    Column("told apart", "Share of the drawn whose own tokens fit, and others do not.", ".0%"),
    Column("fitting", "Share of own tokens that fit, mean over the scored.", ".2f"),
    Column("others fitting", "Share of other tokens that fit, mean over the scored.", ".2f"),
    Column("failed", "Answers that did not come or could not be read.", "d"),
)
Asking = list[tuple[str, LatentTokens, Questions]]


def run_comsem(coders: list[str], config: ComsemConfig) -> Analysis:
    """Score what latents' tokens have in common; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders that cannot be compared, text that cannot be read, a package is missing,
            or the language model cannot be asked any more.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    # First: what is missing is known at once, and reading takes minutes.
    judge = open_judge(config, config.output)
    embeddings = Embeddings(config.device) if judge is None else None
    opened = open_coders(coders, config, config.output)
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
    if judge is not None:
        scores += _asked(judge, asking)
    elif embeddings is not None:
        scores += _embedded(embeddings, asking)
    scores.sort(key=lambda score: (list(given).index(score.coder), score.latent))
    analysis = _analysis(scores, config)
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def _given_tokens(opened: OpenedModel, config: ComsemConfig) -> dict[str, GivenTokens]:
    """Read the text once for the latents' means, and once more to give its tokens away."""
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
    for coder, tokens, questions in tqdm(asking, EMBEDDING_MODEL, unit="latents"):
        scores.append(embedding_score(embeddings, coder, tokens, questions))
        embeddings.forget()
    return scores


def _asked(judge: Judge, asking: Asking) -> list[ComsemScore]:
    """Have a language model score them."""
    scores: list[ComsemScore] = []

    async def score(asked: Asked, item: tuple[str, LatentTokens, Questions]) -> ComsemScore:
        return await LanguageModelJudge(asked).score(*item)

    ask_about(asking, judge, REHEARSED_ANSWER, score, scores.append)
    return scores


def _analysis(scores: list[ComsemScore], config: ComsemConfig) -> Analysis:
    figures = figures_of(scores, config.interpretable_at)
    rows = [list(vars(each).values()) for each in figures]
    judge = config.judge_model or f"embedding, {EMBEDDING_MODEL}"
    return Analysis(
        "comsem",
        "What latents' tokens have in common",
        REMARKS,
        [Table(f"Judge: {judge}", COLUMNS, rows)],
        {"Own tokens and others": _scatter(scores), "Share of latents": _shares(figures)},
        {
            "judge": judge,
            "coders": [vars(each) for each in figures],
            "latents": [asdict(each) for each in scores],
        },
    )


def _scatter(scores: list[ComsemScore]) -> go.Figure:
    """A point a latent, moved a little: shares of eight tokens would lie upon each other."""
    figure, random = go.Figure(), Random(0)

    def moved(share: float | None) -> float | None:
        return None if share is None else share + random.uniform(-0.04, 0.04)

    for coder in dict.fromkeys(score.coder for score in scores):
        own = [each for each in scores if each.coder == coder and each.fitting is not None]
        figure.add_scatter(
            x=[moved(each.others_fitting) for each in own],
            y=[moved(each.fitting) for each in own],
            text=[f"latent {each.latent}: {each.phrase or ''}" for each in own],
            mode="markers",
            opacity=0.6,
            name=coder,
        )
    figure.update_xaxes(title="share of other tokens that fit", range=[-0.05, 1.05])
    figure.update_yaxes(title="share of own tokens that fit", range=[-0.05, 1.05])
    return figure


def _shares(figures: list[ComsemFigures]) -> go.Figure:
    figure = go.Figure()
    for each in figures:
        shown = {"interpretable": each.interpretable, "told apart": each.told_apart}
        figure.add_bar(
            x=list(shown),
            y=[value.value for value in shown.values()],
            error_y=error_bars(list(shown.values())),
            name=each.coder,
        )
    figure.update_yaxes(title="share of the latents drawn", range=[0, 1])
    return figure
