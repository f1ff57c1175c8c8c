"""Parses queries of set algebra over latents: `1203 & 88 & !7`, `at least 2 of (1, 2, 3)`.

    either     both ("|" both)*
    both       one ("&" one)*
    one        "!" one | number | label | "(" either ")" | "at least" number "of" "(" list ")"
    list       either ("," either)*

A label is a word, or any text in double quotes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from sae_binary_ext.commands.search.bitmaps import BitMap

Sets = Callable[[int], BitMap]
_TOKEN = re.compile(r'\s*(?:(?P<number>\d+)|"(?P<quoted>[^"]*)"|(?P<word>\w+)|(?P<sign>[&|!(),]))')
# Deeper queries would exceed the depth of Python's calls.
DEEPEST = 100


class QueryError(ValueError):
    """The query does not parse, or names no latent of the coder; the message shows the place."""

    def __init__(self, query: str, place: int, told: str) -> None:
        super().__init__(f"{told}, at character {place + 1}:\n    {query}\n    {' ' * place}^")


@dataclass(frozen=True)
class Latent:
    """The units in which a latent fires."""

    number: int

    def answer(self, sets: Sets, everything: BitMap) -> BitMap:
        """The units; `sets` gives those of a latent, and `everything` all units."""
        return sets(self.number)

    def latents(self, wanted: bool = True) -> set[int]:
        """The latents that the query wants to fire, or if `wanted` is false, to be silent."""
        return {self.number} if wanted else set()


@dataclass(frozen=True)
class Not:
    """All units but those of a query."""

    part: "Query"

    def answer(self, sets: Sets, everything: BitMap) -> BitMap:
        """As for Latent."""
        return everything - self.part.answer(sets, everything)

    def latents(self, wanted: bool = True) -> set[int]:
        """As for Latent."""
        return self.part.latents(not wanted)


@dataclass(frozen=True)
class _Several:
    parts: tuple["Query", ...]

    def latents(self, wanted: bool = True) -> set[int]:
        """As for Latent."""
        return set[int]().union(*(part.latents(wanted) for part in self.parts))


@dataclass(frozen=True)
class All(_Several):
    """The units of all parts."""

    def answer(self, sets: Sets, everything: BitMap) -> BitMap:
        """As for Latent."""
        return reduce(and_, (part.answer(sets, everything) for part in self.parts))


@dataclass(frozen=True)
class Any(_Several):
    """The units of at least one part."""

    def answer(self, sets: Sets, everything: BitMap) -> BitMap:
        """As for Latent."""
        return reduce(or_, (part.answer(sets, everything) for part in self.parts))


@dataclass(frozen=True)
class AtLeast(_Several):
    """The units of at least `least` parts."""

    least: int

    def answer(self, sets: Sets, everything: BitMap) -> BitMap:
        """As for Latent."""
        # reached[n] has the units of at least n of the parts so far.
        reached = [everything, *(BitMap() for _ in range(self.least))]
        for part in self.parts:
            own = part.answer(sets, everything)
            for number in range(self.least, 0, -1):
                reached[number] |= reached[number - 1] & own
        return reached[self.least]


Query = Latent | Not | All | Any | AtLeast


def parse(query: str, latents: int, labels: Mapping[int, str] | None = None) -> Query:
    """Parse a query over latents 0 to latents - 1, or their labels; QueryError if it is wrong."""
    return _Parser(query, latents, labels or {}).whole()


@dataclass(frozen=True)
class _Word:
    kind: str
    text: str
    place: int


class _Parser:
    def __init__(self, query: str, latents: int, labels: Mapping[int, str]) -> None:
        self._query, self._latents = query, latents
        self._numbers: dict[str, list[int]] = {}
        for number, label in labels.items():
            self._numbers.setdefault(label, []).append(number)
        self._words, self._at, self._depth = list(self._split()), 0, 0

    def _split(self) -> list[_Word]:
        words: list[_Word] = []
        place, end = 0, len(self._query.rstrip())
        while place < end:
            found = _TOKEN.match(self._query, place)
            if found is None:
                place += len(self._query[place:]) - len(self._query[place:].lstrip())
                raise self._error(f"cannot read {self._query[place]!r}", place)
            kind = str(found.lastgroup)
            words.append(_Word(kind, found[kind], found.start(kind)))
            place = found.end()
        return [*words, _Word("end", "the end", end)]

    def _error(self, told: str, place: int) -> QueryError:
        return QueryError(self._query, place, told)

    @property
    def _next(self) -> _Word:
        return self._words[self._at]

    def _takes(self, kind: str, text: str) -> bool:
        """Whether the next word is this one; if so, step over it."""
        fits = self._next.kind == kind and self._next.text == text
        self._at += fits
        return fits

    def _expect(self, kind: str, text: str) -> None:
        if not self._takes(kind, text):
            raise self._error(f'expected "{text}", found {self._found()}', self._next.place)

    def _found(self) -> str:
        return self._next.text if self._next.kind == "end" else f'"{self._next.text}"'

    def whole(self) -> Query:
        found = self._either()
        if self._next.kind != "end":
            told = f'expected "&", "|" or the end, found {self._found()}'
            raise self._error(told, self._next.place)
        return found

    def _either(self) -> Query:
        parts = [self._both()]
        while self._takes("sign", "|"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _both(self) -> Query:
        parts = [self._one()]
        while self._takes("sign", "&"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self) -> Query:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"more than {DEEPEST} parts inside each other", self._next.place)
        try:
            if self._takes("sign", "!"):
                return Not(self._one())
            if self._takes("sign", "("):
                found = self._either()
                self._expect("sign", ")")
                return found
            if self._takes("word", "at"):
                return self._at_least()
            return Latent(self._latent())
        finally:
            self._depth -= 1

    def _at_least(self) -> Query:
        self._expect("word", "least")
        number = self._next
        if number.kind != "number":
            raise self._error(f"expected a number, found {self._found()}", number.place)
        self._at += 1
        self._expect("word", "of")
        self._expect("sign", "(")
        parts = [self._either()]
        while self._takes("sign", ","):
            parts.append(self._either())
        self._expect("sign", ")")
        least = int(number.text)
        if not 1 <= least <= len(parts):
            raise self._error(f"at least {least} of {len(parts)} cannot be", number.place)
        return AtLeast(tuple(parts), least)

    def _latent(self) -> int:
        word = self._next
        if word.kind == "number":
            number = int(word.text)
            if number >= self._latents:
                told = f"latent {number} is out of range: the coder has 0 to {self._latents - 1}"
                raise self._error(told, word.place)
        elif word.kind in ("word", "quoted"):
            number = self._labelled(word)
        else:
            told = f'expected a latent, a label, "!" or "(", found {self._found()}'
            raise self._error(told, word.place)
        self._at += 1
        return number

    def _labelled(self, word: _Word) -> int:
        numbers = self._numbers.get(word.text, [])
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            told = f'"{word.text}" is the label of latents {numbers}; give one of the numbers'
        elif self._numbers:
            told = f'no latent has the label "{word.text}"'
        else:
            told = f'"{word.text}" is no number, and there are no labels (--labels)'
        raise self._error(told, word.place)
