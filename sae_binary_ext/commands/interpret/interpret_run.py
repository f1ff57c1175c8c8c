"""`sae-binary interpret`: read text, choose windows of latents, and have judges score them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tqdm import tqdm

from sae_binary_ext.commands.interpret.config import InterpretConfig
from sae_binary_ext.commands.interpret.drawn_windows import Reading, ReadLatents, read_latents
from sae_binary_ext.commands.interpret.examples import (
    DEAD,
    LatentExamples,
    Nearest,
    choose_examples,
)
from sae_binary_ext.commands.interpret.interpret_page import (
    interpretation_table,
    write_interpretation,
)
from sae_binary_ext.commands.interpret.interpret_scores import (
    LatentScore,
    SavedScores,
    by_coder_and_judge,
)
from sae_binary_ext.commands.interpret.language_model import LanguageModelScorer
from sae_binary_ext.commands.interpret.with_delphi import Embeddings, EmbeddingScorer, HardNegatives
from sae_binary_ext.measure.documents import ALL_ARTICLES, token_texts
from sae_binary_ext.measure.judge import Asked, Judge, ask_about, imported, open_judge
from sae_binary_ext.measure.progress import fingerprint
from sae_binary_ext.measure.reading import open_coders, settings_of
from sae_binary_ext.measure.samples import predictability

TOKEN_BASELINE = "tokens, naive Bayes"


def run_interpret(coders: list[str], config: InterpretConfig) -> str:
    """Score latents of coders; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the command's settings.

    Returns:
        The scores as a table for the terminal.

    Raises:
        CheckpointError: a coder cannot be read.
        KeyboardInterrupt: Ctrl-C; scores so far are saved.
        ValueError: the coders cannot be compared, the text cannot be read, a package is missing, or
            the language model cannot be asked any more.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    # Judges are opened first, so that a missing package is known before minutes of reading.
    embeddings = Embeddings(config.device) if config.judge == "embedding" else None
    judge = open_judge(config, config.output)
    if judge is not None:
        imported("delphi.scorers")
    opened = open_coders(coders, config, config.output, ALL_ARTICLES)
    sources = opened.model_name, *config.text_source().names(ALL_ARTICLES)
    reading = read_latents(opened, config.amount(), config.output / "read.safetensors", sources)
    text = token_texts(opened.tokenizer)
    of = fingerprint(opened.candidates, config.settings(), sources)
    saved = SavedScores(config.output / "scores.jsonl", of)
    names = [candidate.name for candidate in opened.candidates]
    for coder, read in zip(names, reading.coders, strict=True):
        saved.add(token_scores(coder, read))
    nearest = None
    if embeddings is not None and config.negatives == "hard":
        nearest = HardNegatives(embeddings, reading.pool.tokens[0], text).nearest
    judging = _Judging(names, reading, config, nearest, saved)
    if embeddings is not None:
        judging.embed(EmbeddingScorer(embeddings, text))
    if judge is not None:
        judging.ask(judge, text)
    found = by_coder_and_judge(saved.scores)
    write_interpretation(found, settings_of(opened, config), config.output)
    return str(interpretation_table(found))


def token_scores(coder: str, read: ReadLatents) -> Iterator[LatentScore]:
    """Score latents by the token baseline: the token and its neighbours predict firing.

    Counts come from other documents than the tokens that are predicted.

    Args:
        coder: name of the coder.
        read: firings and windows of its latents.
    """
    areas = predictability(read.places).areas[:, 0].tolist()
    for place, area in enumerate(areas):
        score = LatentScore(coder, *read.facts(place), TOKEN_BASELINE)
        too_few = "active at too few places" if score.firings else DEAD
        told = area == area
        yield replace(score, area=area if told else None, reason=None if told else too_few)


class _Judging:
    """Has judges score the latents that have no saved score."""

    def __init__(
        self,
        names: list[str],
        reading: Reading,
        config: InterpretConfig,
        nearest: Nearest | None,
        saved: SavedScores,
    ) -> None:
        self._names, self._reading, self._config = names, reading, config
        self._nearest, self._saved = nearest, saved

    def embed(self, scorer: EmbeddingScorer) -> None:
        """Have the embedding score the latents."""
        for coder, chosen in self._left((scorer.judge,)):
            self._saved.add([scorer.score(coder, chosen)])

    def ask(self, judge: Judge, text: Callable[[int], str]) -> None:
        """Have a language model score the latents; first log how many tokens that takes.

        Raises:
            ValueError: the language model cannot be asked any more.
        """
        at_once = self._config.judge_windows

        async def score(asked: Asked, item: tuple[str, LatentExamples]) -> list[LatentScore]:
            return await LanguageModelScorer(asked, text, at_once).score(*item)

        left = list(self._left(LanguageModelScorer(judge, text, at_once).judges))
        answer = f"{[0] * at_once} [EXPLANATION]: {'word ' * 20}"
        ask_about(left, judge, answer, score, self._saved.add)

    def _left(self, judges: tuple[str, ...]) -> Iterator[tuple[str, LatentExamples]]:
        """Latents without scores of these judges; saves the reason if one cannot be judged."""
        pool = self._reading.pool.tokens[0]
        for number, coder in enumerate(self._names):
            read, silent = self._reading.coders[number], self._reading.silent(number)
            for place in tqdm(range(len(read.firings)), desc=coder, unit="latents"):
                latent, firings, rate = read.facts(place)
                if all(self._saved.has(coder, latent, judge) for judge in judges):
                    continue
                chosen = choose_examples(
                    read,
                    place,
                    silent[:, place],
                    pool,
                    self._config.counts(),
                    self._config.sampling,
                    self._nearest,
                )
                if isinstance(chosen, str):
                    self._saved.add(
                        LatentScore(coder, latent, firings, rate, judge, reason=chosen)
                        for judge in judges
                    )
                else:
                    yield coder, chosen
