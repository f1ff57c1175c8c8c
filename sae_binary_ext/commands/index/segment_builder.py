"""Collects the codes of a segment in memory, and writes its files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.index import rice
from sae_binary_ext.saving import replacing


class SegmentBuilder:
    """The codes, tokens and documents of a segment that is not written yet."""

    def __init__(self, latents: int) -> None:
        self._latents = latents
        self._latent_type = np.min_scalar_type(latents)
        self._token_ids: list[NDArray[Any]] = []
        self._firing: list[tuple[NDArray[Any], NDArray[np.uint32]]] = []
        self._documents: list[tuple[int, int]] = []
        self.tokens = self.batches = self.firings = 0

    def add(
        self,
        token_ids: NDArray[np.int64],
        has_code: NDArray[np.bool_],
        firing: tuple[NDArray[np.int64], NDArray[np.int64]],
        documents: NDArray[np.int64],
    ) -> None:
        """Add a batch.

        Args:
            token_ids: [tokens], in the order of the text.
            has_code: [tokens]; tokens without a code are kept as text alone.
            firing: numbers of tokens among those with a code, in order, and the latents that fire
                on them.
            documents: [tokens], the number of each token's document in the text.
        """
        row, latent = firing
        coded, silent = np.flatnonzero(has_code), np.flatnonzero(~has_code)
        # The last latent stands for the tokens without a code.
        latent = np.concatenate([latent, np.full(len(silent), self._latents)])
        place = np.concatenate([coded[row], silent]) + self.tokens
        self._firing.append((latent.astype(self._latent_type), place.astype(np.uint32)))
        self._token_ids.append(token_ids)
        for start in np.flatnonzero(np.diff(documents, prepend=-1)):
            number = int(documents[start])
            if not self._documents or self._documents[-1][1] != number:
                self._documents.append((self.tokens + int(start), number))
        self.tokens += len(token_ids)
        self.firings += len(latent)
        self.batches += 1

    def write(self, folder: Path, source: list[str], of_files: str) -> None:
        """Write the segment. A process killed at any moment leaves all of its files or none."""
        latent, place = map(np.concatenate, zip(*self._firing, strict=True))
        # The sort is stable, so each latent's tokens stay in the order of the text.
        place = place[np.argsort(latent, kind="stable")]
        counts = np.bincount(latent, minlength=self._latents + 1)
        table = np.zeros(self._latents + 1, files.TABLE)
        table["count"] = counts
        payloads: list[bytes] = []
        end = 0
        for number, own in enumerate(np.split(place, np.cumsum(counts)[:-1])):
            payload, bits = rice.encode(own, self.tokens)
            payloads.append(payload)
            end += len(payload)
            table["end"][number], table["bits"][number] = end, bits
        active = np.bincount(place[: len(place) - counts[-1]], minlength=self.tokens)
        token_ids = np.concatenate(self._token_ids)
        facts = files.SegmentFacts(source, of_files, self.batches, self.tokens)
        with replacing(folder) as new:
            (new / files.BITMAPS).write_bytes(b"".join(payloads))
            np.save(new / "table.npy", table)
            np.save(new / "tokens.npy", _small(token_ids))
            np.save(new / "active.npy", _small(active))
            np.save(new / "documents.npy", np.array(self._documents, np.uint32))
            (new / files.FACTS).write_text(json.dumps(asdict(facts)))


def _small(numbers: NDArray[Any]) -> NDArray[Any]:
    """The numbers in the smallest unsigned type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max())))
