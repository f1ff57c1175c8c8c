"""The units that a query is about: tokens, windows of tokens, or documents."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from sae_binary_ext.commands.index.index_folder import IndexFolder
from sae_binary_ext.commands.search.bitmaps import BitMap, Numbers, bitmap_of, numbers_of

TOKEN, WINDOW, DOCUMENT = "token", "window", "document"
SCOPES = (TOKEN, WINDOW, DOCUMENT)


class TextOfIndex:
    """Documents of an index, and which of its tokens have a code.

    A document that two segments share is one document.
    """

    def __init__(self, folder: IndexFolder) -> None:
        self.folder, self.tokens = folder, folder.tokens

    @cached_property
    def with_code(self) -> BitMap:
        """Tokens that have a code."""
        without = self.folder.positions(self.folder.header.latents)
        return BitMap(range(self.tokens)) - BitMap.union(BitMap(), *map(bitmap_of, without))

    @cached_property
    def _documents(self) -> list[tuple[NDArray[np.int64], list[str], NDArray[np.int64]]]:
        """For each segment: first tokens of new documents, the source, and their numbers there."""
        found: list[tuple[NDArray[np.int64], list[str], NDArray[np.int64]]] = []
        before: tuple[list[str], int] | None = None
        for segment in self.folder.segments:
            starts, numbers = segment.documents.astype(np.int64).T
            source = segment.facts.source
            goes_on = before == (source, int(numbers[0]))
            before = source, int(numbers[-1])
            found.append((starts[goes_on:] + segment.first, source, numbers[goes_on:]))
        return found

    @cached_property
    def starts(self) -> Numbers:
        """The first token of each document, and last the number of tokens."""
        return np.concatenate([*(starts for starts, _, _ in self._documents), [self.tokens]])

    def document_of(self, tokens: Numbers) -> Numbers:
        """The number in the index of each token's document."""
        return np.searchsorted(self.starts, tokens, "right") - 1

    def name(self, document: int) -> str:
        """The source of a document, and its number there."""
        first = 0
        for starts, source, numbers in self._documents:
            if document < first + len(starts):
                return f"{', '.join(source)}: document {numbers[document - first]}"
            first += len(starts)
        raise IndexError(document)


class Scope(ABC):
    """A kind of unit. A latent fires in a unit if it fires on one of the unit's tokens.

    `many` is what several units are called.
    """

    many: str

    def __init__(self, text: TextOfIndex) -> None:
        self.text = text

    @cached_property
    def everything(self) -> BitMap:
        """All units."""
        return self.units(self.text.with_code)

    @abstractmethod
    def units(self, tokens: BitMap) -> BitMap:
        """The units that hold some of these tokens."""

    @abstractmethod
    def span(self, unit: int) -> tuple[int, int]:
        """The first token of a unit, and the token after its last."""


class Tokens(Scope):
    """Each token with a code is a unit."""

    many = "tokens"

    @override
    def units(self, tokens: BitMap) -> BitMap:
        return tokens

    @override
    def span(self, unit: int) -> tuple[int, int]:
        return unit, unit + 1


class Windows(Scope):
    """The tokens that end at a token with a code, at most `length` of one document, are a unit."""

    def __init__(self, text: TextOfIndex, length: int) -> None:
        super().__init__(text)
        self._length = length
        self.many = f"windows of {length} tokens"

    @override
    def units(self, tokens: BitMap) -> BitMap:
        if not tokens:
            return BitMap()
        firsts = numbers_of(tokens)
        document_ends = self.text.starts[self.text.document_of(firsts) + 1]
        ends = np.minimum(firsts + self._length, document_ends)
        # Ends are in order, so an interval begins where the one before has ended.
        begins = np.maximum(firsts, np.concatenate([[0], ends[:-1]]))
        lengths = ends - begins
        into = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return bitmap_of(np.repeat(begins, lengths) + into) & self.text.with_code

    @override
    def span(self, unit: int) -> tuple[int, int]:
        (document,) = self.text.document_of(np.array([unit]))
        return max(int(self.text.starts[document]), unit + 1 - self._length), unit + 1


class Documents(Scope):
    """Each document that has a token with a code is a unit."""

    many = "documents"

    @override
    def units(self, tokens: BitMap) -> BitMap:
        # np.unique would import a further part of numpy, which takes a tenth of a second.
        documents = self.text.document_of(numbers_of(tokens))
        return bitmap_of(documents[np.diff(documents, prepend=-1) > 0])

    @override
    def span(self, unit: int) -> tuple[int, int]:
        first, end = self.text.starts[unit : unit + 2]
        return int(first), int(end)
