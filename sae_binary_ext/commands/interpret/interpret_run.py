"""`sae-binary interpret`: reads text, chooses windows of latents, and has judges score latents."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm import tqdm

from sae_binary_ext.commands.interpret import examples, interpret_page, with_delphi
from sae_binary_ext.commands.interpret.config import InterpretConfig
from sae_binary_ext.commands.interpret.examples import LatentExamples
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, SavedScores
from sae_binary_ext.commands.interpret.windows import Reading, ReadLatents, read_latents
from sae_binary_ext.measure.documents import ALL_ARTICLES, token_texts
from sae_binary_ext.measure.judge import Asked, ask_about, imported, open_judge
from sae_binary_ext.measure.reading import fingerprint, open_coders, settings_of
from sae_binary_ext.measure.samples import predictability
from sae_binary_ext.measure.saved_activations import read_from_file

TOKEN_BASELINE = "tokens, naive Bayes"


def run_interpret(coders: list[str], config: InterpretConfig) -> str:
    """Score latents of coders; files go to config.output.

    Args:
        coders: folders of one coder or of several coders, or Hub ids of either.
        config: the command's settings.

    Returns:
        The scores as a table for the terminal.

    Raises:
        CheckpointError: a coder cannot be read.
        KeyboardInterrupt: Ctrl-C was pressed; scores so far are saved.
        ValueError: the coders cannot be compared, the text cannot be read, a package is missing, or
            the language model stops answering.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    # Open the judges first, so that a missing package is reported before minutes of reading.
    embeddings = with_delphi.Embeddings(config.device) if config.judge == "embedding" else None
    judge = open_judge(config, config.output)
    if judge is not None:
        imported("delphi.scorers")
    opened = read_from_file(open_coders(coders, config, config.output, ALL_ARTICLES), config)
    names_of_text = config.text_source().names(ALL_ARTICLES)
    sources = opened.model_name, opened.precision, *names_of_text, *config.files_of_activations()
    reading = read_latents(opened, config.amount(), config.output / "read.safetensors", sources)
    text = token_texts(opened.tokenizer)
    of = fingerprint(opened.candidates, config.settings(), sources)
    saved = SavedScores(config.output / "scores.jsonl", of)
    names = [candidate.name for candidate in opened.candidates]
    for coder, read in zip(names, reading.coders, strict=True):
        saved.add(token_scores(coder, read))
    nearest = None
    if embeddings is not None and config.negatives == "hard":
        nearest = with_delphi.nearest_in(reading.pool.tokens[0], embeddings, text)
    unscored = partial(_unscored, names, reading, config, nearest, saved)
    if embeddings is not None:
        for coder, chosen in unscored((with_delphi.EMBEDDING_JUDGE,)):
            saved.add([with_delphi.embedding_score(embeddings, text, coder, chosen)])
    if judge is not None:
        at_once = config.judge_windows
        new = partial(with_delphi.LanguageModelScorer, text=text, at_once=at_once)

        async def score(asked: Asked, item: tuple[str, LatentExamples]) -> list[LatentScore]:
            return await new(asked).score(*item)

        answer = f"{[0] * at_once} [EXPLANATION]: {'word ' * 20}"
        ask_about(list(unscored(new(judge).judges)), judge, answer, score, saved.add)
    found = interpret_page.by_coder_and_judge(saved.records)
    run = settings_of(opened, config)
    return str(interpret_page.write_interpretation(found, run, config.output))


def token_scores(coder: str, read: ReadLatents) -> Iterator[LatentScore]:
    """Score a coder's latents by the token baseline: a token and its neighbours predict firing.

    Predictions for a document use counts from other documents only.
    """
    for place, area in enumerate(predictability(read.places).areas[:, 0].tolist()):
        latent, firings, rate = read.facts(place)
        reason = "active at too few places" if firings else examples.DEAD
        told: dict[str, Any] = {"area": area} if area == area else {"reason": reason}
        yield LatentScore(coder, latent, firings, rate, TOKEN_BASELINE, **told)


def _unscored(
    names: list[str],
    reading: Reading,
    config: InterpretConfig,
    nearest: examples.Nearest | None,
    saved: SavedScores,
    judges: tuple[str, ...],
) -> Iterator[tuple[str, LatentExamples]]:
    """Latents that these judges have not scored; if a latent cannot be judged, save the reason."""
    for number, (coder, read) in enumerate(zip(names, reading.coders, strict=True)):
        silent = reading.silent(number)
        for place in tqdm(range(len(read.firings)), desc=coder, unit="latents"):
            latent, firings, rate = read.facts(place)
            if all(saved.has(coder, latent, judge) for judge in judges):
                continue
            chosen = examples.choose_examples(
                read, place, silent[:, place], reading.pool.tokens[0], config, nearest
            )
            if isinstance(chosen, LatentExamples):
                yield coder, chosen
                continue
            saved.add(
                LatentScore(coder, latent, firings, rate, judge, reason=chosen) for judge in judges
            )
