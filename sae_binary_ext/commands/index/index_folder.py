"""The files of an index: a header, and one folder for each segment of the text.

This module imports no torch, so that a search starts quickly. Files are read by memory map.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sae_binary_ext.commands.index import rice
from sae_binary_ext.commands.index.rice import Positions
from sae_binary_ext.settings import FLOAT32

VERSION = 1
HEADER, VOCABULARY, SEGMENTS = "index.json", "vocabulary.json", "segments"
BITMAPS, FACTS = "bitmaps.bin", "segment.json"
ARRAYS = ("table", "tokens", "active", "documents")
# For each latent: where its bitmap ends in bitmaps.bin, its firings, and the low bits of rice.py.
TABLE = np.dtype([("end", "<u4"), ("count", "<u4"), ("bits", "u1")])


@dataclass(frozen=True)
class IndexHeader:
    """What the codes of an index depend on. Two texts are in one index only if all of it is equal.

    Attributes:
        coder: SHA-256 of the coder's settings and weights, hexadecimal.
        has_values: whether the coder is a stock coder, whose latents fire where they are not 0.
        latents: number of the coder's latents.
        model, hook: the model, and its hook that the coder reads.
        tokenizer: SHA-256 of the texts of all tokens, hexadecimal.
        context_size, first_position, norm_limit: as in ReadingConfig.
        precision: as in ActivationsFields, without auto.
    """

    coder: str
    has_values: bool
    latents: int
    model: str
    hook: str
    tokenizer: str
    context_size: int
    first_position: int
    norm_limit: float
    precision: str = FLOAT32


@dataclass(frozen=True)
class SegmentFacts:
    """Text of a segment: its dataset (TextSource.names), its files' fingerprint, and its amount."""

    source: list[str]
    files: str
    batches: int
    tokens: int


class Segment:
    """One segment. `first` is the number of its first token in the index."""

    def __init__(self, folder: Path, facts: SegmentFacts, first: int) -> None:
        self._folder, self.facts, self.first = folder, facts, first
        for name in (*(f"{name}.npy" for name in ARRAYS), BITMAPS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: lacks {name}. Delete this folder and index again.")
        ends, size = self._array("table")["end"], (folder / BITMAPS).stat().st_size
        if len(self.token_ids) != facts.tokens or int(ends[-1]) != size:
            raise ValueError(f"{folder}: its files are cut short. Delete it and index again.")

    def _array(self, name: str) -> NDArray[Any]:
        return np.load(self._folder / f"{name}.npy", mmap_mode="r")

    @cached_property
    def _bitmaps(self) -> NDArray[np.uint8]:
        path = self._folder / BITMAPS
        # An empty file cannot be mapped.
        return np.memmap(path, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)

    @cached_property
    def _table(self) -> NDArray[Any]:
        return self._array("table")

    @cached_property
    def token_ids(self) -> NDArray[Any]:
        """Token ids, unsigned [tokens]."""
        return self._array("tokens")

    @cached_property
    def active(self) -> NDArray[Any]:
        """How many latents fire on each token, unsigned [tokens]."""
        return self._array("active")

    @cached_property
    def documents(self) -> NDArray[np.uint32]:
        """For each document, its first token's number in the segment, and its own in the text."""
        return self._array("documents")

    @cached_property
    def counts(self) -> NDArray[np.uint32]:
        """Firings of each latent, uint32 [latents + 1]; the last is the tokens without a code."""
        return self._table["count"]

    def positions(self, latent: int) -> Positions:
        """Numbers in the index of the tokens on which a latent fires."""
        _, count, bits = self._table[latent]
        begin, end = self._table["end"][latent - 1] if latent else 0, self._table["end"][latent]
        payload = self._bitmaps[begin:end]
        try:
            found = rice.decode(payload, int(count), int(bits), self.facts.tokens)
        except ValueError as error:
            raise ValueError(f"{self._folder}: bitmap {latent} is damaged: it {error}.") from error
        return found + np.uint32(self.first)


class IndexFolder:
    """An index on disk. CodeIndex searches it.

    Attributes:
        header: what the codes depend on.
        about: the coder's place (`coder`), `model` and `hook` as they were given, and the `medians`
            of the norms at each hook.
        segments: in the order of the text.
    """

    def __init__(
        self, path: Path, header: IndexHeader, about: dict[str, Any], segments: list[Segment]
    ) -> None:
        self.path, self.header, self.about, self.segments = path, header, about, segments

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an index; ValueError if the path is no index, or the index is damaged."""
        try:
            saved = json.loads((path / HEADER).read_text())
            version, header = saved["version"], saved["header"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: is no index; there is no usable {HEADER}. Make one: sae-binary index "
                f"{path} CODER."
            ) from error
        if version != VERSION:
            raise ValueError(
                f"{path}: has version {version}, and this package reads {VERSION}. Index again."
            )
        folders = sorted((path / SEGMENTS).glob("[0-9]*"))
        facts = [SegmentFacts(**json.loads((each / FACTS).read_text())) for each in folders]
        firsts = accumulate((each.tokens for each in facts), initial=0)
        segments = [Segment(*each) for each in zip(folders, facts, firsts, strict=False)]
        return cls(path, IndexHeader(**header), saved["about"], segments)

    @property
    def tokens(self) -> int:
        """Number of tokens, with and without a code."""
        return sum(segment.facts.tokens for segment in self.segments)

    @property
    def firings(self) -> NDArray[np.int64]:
        """Firings of each latent, int64 [latents + 1]; the last is the tokens without a code."""
        zero = np.zeros(self.header.latents + 1, np.int64)
        return sum((segment.counts.astype(np.int64) for segment in self.segments), zero)

    def positions(self, latent: int) -> Iterator[Positions]:
        """Numbers of the tokens on which a latent fires, segment by segment."""
        return (segment.positions(latent) for segment in self.segments)

    def entropy(self) -> float:
        """Bits a token of the codes, as the sum of the entropies of all latents' firing rates."""
        *firings, without = self.firings
        rates = np.array(firings) / max(self.tokens - without, 1)
        rates = rates[(rates > 0) & (rates < 1)]
        return float(-(rates * np.log2(rates) + (1 - rates) * np.log2(1 - rates)).sum())

    def bits(self) -> dict[str, float]:
        """Bits a token of each part on disk."""
        files = [file for file in (self.path / SEGMENTS).rglob("*") if file.is_file()]
        files += [self.path / HEADER, self.path / VOCABULARY]
        sizes: dict[str, int] = {}
        for file in files:
            sizes[file.stem] = sizes.get(file.stem, 0) + file.stat().st_size
        return {name: 8 * size / max(self.tokens, 1) for name, size in sorted(sizes.items())}

    def __str__(self) -> str:
        """The amount of text, and bits a token of each part."""
        texts = dict.fromkeys(", ".join(segment.facts.source) for segment in self.segments)
        parts = self.bits()
        lines = [
            f"{self.tokens:,} tokens; segments: {len(self.segments)}; texts: {'; '.join(texts)}",
            f"bits a token: {sum(parts.values()):.1f} on disk",
            *(f"    {name:<12} {bits:8.1f}" for name, bits in parts.items()),
            f"entropy of the firing rates: {self.entropy():.1f}",
        ]
        if self.header.has_values:
            lines.append("The coder is a stock coder: a latent fires where its value is not 0.")
        return "\n".join(lines)

    def write_header(self) -> None:
        """Write index.json, in one step."""
        saved = {"version": VERSION, "header": asdict(self.header), "about": self.about}
        new = self.path / f"{HEADER}.new"
        new.write_text(json.dumps(saved, indent=1))
        new.replace(self.path / HEADER)
