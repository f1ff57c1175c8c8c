"""Searches an index: exact set algebra, text in context, latents that fire together, neighbours."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.index.index_folder import IndexFolder
from sae_binary_ext.commands.search import scopes
from sae_binary_ext.commands.search.bitmaps import BitMap, Numbers, bitmap_of, numbers_of
from sae_binary_ext.commands.search.query import Query, parse
from sae_binary_ext.commands.search.scopes import Scope

DEFAULT_WINDOW = 16
# Tokens shown before and after a match.
AROUND = 12
# Latents that fire together with an answer in fewer units are left out, because their lift is
# mostly chance.
LEAST_TOGETHER = 5
HAMMING, JACCARD = "hamming", "jaccard"
DISTANCES = (HAMMING, JACCARD)


@dataclass(frozen=True)
class Answer:
    """The units that a query describes: tokens, windows or documents, by their numbers.

    `among` is the number of all units.
    """

    query: str
    parsed: Query
    scope: Scope
    units: BitMap

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def among(self) -> int:
        """Number of all units in the index."""
        return len(self.scope.everything)

    def __str__(self) -> str:
        """The query and its count, or that it fits nothing."""
        if not self.count:
            return f"{self.query}: none of {self.among:,} {self.scope.many}"
        share = self.count / self.among
        return f"{self.query}: {self.count:,} of {self.among:,} {self.scope.many} ({share:.3%})"


@dataclass(frozen=True)
class Passage:
    """Text around a unit. `tokens` has each token's text, and whether it is marked.

    first_token: the number in the index of the first token shown.
    """

    document: str
    first_token: int
    tokens: tuple[tuple[str, bool], ...]

    def __str__(self) -> str:
        """The document, and the text in one line, with marked tokens in «»."""
        shown = "".join(_in_quotes(text) if marked else text for text, marked in self.tokens)
        return f"{self.document}, token {self.first_token}\n    {' '.join(shown.split())}"


def _in_quotes(token: str) -> str:
    """A token in «», with the space before it outside."""
    text = token.lstrip()
    return f"{token[: len(token) - len(text)]}«{text}»"


@dataclass(frozen=True)
class Cofiring:
    """A latent that fires in units of an answer.

    Attributes:
        together: units of the answer in which it fires.
        lift: its firing rate in the answer over its rate in all units.
    """

    latent: int
    together: int
    lift: float


@dataclass(frozen=True)
class Neighbour:
    """A unit, by its number, with the distance of its code and its text."""

    unit: int
    distance: float
    passage: Passage


class CodeIndex:
    """An index of codes, opened for searching.

    Args:
        folder: the opened index.
        labels: labels of latents, by number, for queries.
    """

    def __init__(self, folder: IndexFolder, labels: Mapping[int, str] | None = None) -> None:
        self.folder, self.labels = folder, dict(labels or {})
        self._text = scopes.TextOfIndex(folder)

    @classmethod
    def open(cls, path: str | Path, labels: str | Path | None = None) -> Self:
        """Open an index, and a JSON file {latent: label}; ValueError if either is none."""
        return cls(IndexFolder.open(Path(path)), read_labels(Path(labels)) if labels else None)

    def query(self, text: str, within: str = scopes.TOKEN, window: int = DEFAULT_WINDOW) -> Answer:
        """The tokens, windows or documents that a query describes.

        Args:
            text: latents by number or label, with & | ! ( ) and `at least 2 of (1, 2, 3)`.
            within: token, window or document.
            window: tokens in a window.

        QueryError (a ValueError) if the text does not parse or a latent is out of range.
        """
        parsed = parse(text, self.folder.header.latents, self.labels)
        scope = self._scope(within, window)
        units = parsed.answer(lambda each: scope.units(self.fires_on(each)), scope.everything)
        return Answer(text, parsed, scope, units)

    def count(self, text: str, within: str = scopes.TOKEN, window: int = DEFAULT_WINDOW) -> int:
        """The number of units that a query describes; as for `query`."""
        return self.query(text, within, window).count

    def fires_on(self, latent: int) -> BitMap:
        """The tokens on which a latent fires."""
        return BitMap.union(BitMap(), *map(bitmap_of, self.folder.positions(latent)))

    def passages(self, answer: Answer, show: int = 10) -> list[Passage]:
        """Text around units of an answer, from all parts of the index.

        Of units one after the other, only the first is taken. Marked are the tokens of a unit on
        which a latent of the query fires.
        """
        units = numbers_of(answer.units)
        firsts = units[np.diff(units, prepend=-2) > 1]
        if answer.scope.many == scopes.Documents.many:
            firsts = units
        chosen = np.linspace(0, len(firsts) - 1, min(show, len(firsts))).round()
        wanted = [self.fires_on(latent) for latent in answer.parsed.latents()]
        marked = BitMap.union(BitMap(), *wanted)
        return [self._passage(answer.scope, int(firsts[int(at)]), marked) for at in chosen]

    def cofiring(self, answer: Answer, show: int = 10) -> list[Cofiring]:
        """The latents of highest lift, of those that the query does not name.

        Reads all bitmaps. Latents that fire in fewer than LEAST_TOGETHER units of the answer are
        left out.
        """
        scope, own = answer.scope, answer.parsed.latents() | answer.parsed.latents(False)
        found: list[Cofiring] = []
        for latent, tokens in self._all_latents():
            units = scope.units(tokens)
            together = units.intersection_cardinality(answer.units)
            if together >= LEAST_TOGETHER and latent not in own:
                lift = together * answer.among / (answer.count * len(units))
                found.append(Cofiring(latent, together, lift))
        return sorted(found, key=lambda each: -each.lift)[:show]

    def nearest(
        self,
        latents: Iterable[int],
        show: int = 10,
        distance: str = HAMMING,
        within: str = scopes.TOKEN,
    ) -> list[Neighbour]:
        """The tokens or documents whose code is nearest to a code, nearest first.

        The code of a document has all latents that fire on one of its tokens. Equal distances keep
        the order of the text. Exact: no unit is left out.

        Args:
            latents: the active latents of the code.
            show: how many to return.
            distance: hamming (number of latents that differ) or jaccard (1 less the share of
                latents in common).
            within: token or document.
        """
        check_choice(DISTANCES, distance=distance)
        check_choice((scopes.TOKEN, scopes.DOCUMENT), within=within)
        scope, firings = self._scope(within), [self.fires_on(each) for each in set(latents)]
        units = numbers_of(scope.everything)
        common = np.zeros(int(units[-1]) + 1, np.int64)
        for tokens in firings:
            common[numbers_of(scope.units(tokens))] += 1
        sizes = self._active if within == scopes.TOKEN else self._active_in_documents
        either = sizes[units] + len(firings) - common[units]
        differing = either - common[units]
        distances = differing / np.maximum(either, 1) if distance == JACCARD else differing
        marked = BitMap.union(BitMap(), *firings)
        return [
            Neighbour(
                int(units[at]), float(distances[at]), self._passage(scope, int(units[at]), marked)
            )
            for at in _smallest(distances, show)
        ]

    @cached_property
    def _active(self) -> Numbers:
        """Number of active latents of each token."""
        parts = [segment.active.astype(np.int64) for segment in self.folder.segments]
        return np.concatenate(parts)

    @cached_property
    def _active_in_documents(self) -> Numbers:
        scope = self._scope(scopes.DOCUMENT)
        sizes = np.zeros(len(self._text.starts) - 1, np.int64)
        for _, tokens in self._all_latents():
            sizes[numbers_of(scope.units(tokens))] += 1
        return sizes

    def _all_latents(self) -> Iterator[tuple[int, BitMap]]:
        for latent in tqdm(range(self.folder.header.latents), "Latents", leave=False, delay=5):
            yield latent, self.fires_on(latent)

    def _scope(self, within: str, window: int = DEFAULT_WINDOW) -> Scope:
        check_choice(scopes.SCOPES, within=within)
        check_at_least(1, window=window)
        if within == scopes.WINDOW:
            return scopes.Windows(self._text, window)
        return (scopes.Tokens if within == scopes.TOKEN else scopes.Documents)(self._text)

    def _passage(self, scope: Scope, unit: int, marked: BitMap) -> Passage:
        """The text of a unit and around it. A document is shown around its first marked token."""
        first, end = scope.span(unit)
        at = next(marked.iter_equal_or_larger(first), end)
        at = first if at >= end else at
        (document,) = self._text.document_of(np.array([first]))
        bounds = self._text.starts[document : document + 2]
        shown_end = min(end, at + 2 * AROUND + DEFAULT_WINDOW) + AROUND
        begin, stop = max(int(bounds[0]), at - AROUND), min(int(bounds[1]), shown_end)
        unit_is_token = end - first == 1
        tokens = tuple(
            (
                text,
                (unit_is_token and number == unit) or (first <= number < end and number in marked),
            )
            for number, text in enumerate(self._texts(begin, stop), begin)
        )
        return Passage(self._text.name(int(document)), begin, tokens)

    @cached_property
    def _vocabulary(self) -> list[str]:
        path = self.folder.path / files.VOCABULARY
        return json.loads(path.read_text(encoding="utf-8"))

    def _texts(self, begin: int, end: int) -> list[str]:
        """Texts of the tokens from `begin` to `end`, which may be in several segments."""
        parts = [
            segment.token_ids[max(begin - segment.first, 0) : max(end - segment.first, 0)]
            for segment in self.folder.segments
        ]
        return [self._vocabulary[token] for part in parts for token in part.tolist()]


def _smallest(distances: NDArray[Any], number: int) -> Numbers:
    """Places of the smallest distances, in order; equal distances keep their order."""
    if number < len(distances):
        # Sort only what can be among the smallest.
        places = np.flatnonzero(distances <= np.partition(distances, number - 1)[number - 1])
    else:
        places = np.arange(len(distances))
    return places[np.argsort(distances[places], kind="stable")[:number]]


def read_labels(path: Path) -> dict[int, str]:
    """Labels by latent, from a JSON file {latent: label}; ValueError if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {int(latent): str(label) for latent, label in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"labels={str(path)!r}: cannot be read ({error}). Give a JSON file of latents and "
            'labels, such as {"1203": "Eiffel tower"}.'
        ) from error
