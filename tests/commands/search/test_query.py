"""Queries that parse, and the place of the mistake in those that do not."""

import pytest
from pyroaring import BitMap

from sae_binary_ext.commands.search.query import QueryError, parse

LATENTS = 100
LABELS = {5: "tower", 6: "Eiffel tower", 7: "twice", 8: "twice"}
# Units in which each latent fires, of units 0 to 9.
SETS = {1: BitMap([1, 2, 3]), 2: BitMap([2, 3, 4]), 3: BitMap([3, 9]), 5: BitMap([5])}
SETS[6] = BitMap([6])
EVERYTHING = BitMap(range(10))


@pytest.mark.parametrize(
    ("query", "units"),
    [
        ("1", [1, 2, 3]),
        (" 1&2 ", [2, 3]),
        ("1 & !3", [1, 2]),
        ("!1 & !2", [0, 5, 6, 7, 8, 9]),
        ("!!3", [3, 9]),
        ("1 & 2 | 3", [2, 3, 9]),
        ("1 & (2 | 3)", [2, 3]),
        ("at least 2 of (1, 2, 3)", [2, 3]),
        ("at least 3 of (1, 2, !3)", [2]),
        ("at least 1 of (1 & 2, 3) & !9 | 5", [2, 3, 5, 9]),
        ("tower | \"Eiffel tower\"", [5, 6]),
    ],
)  # fmt: skip
def test_a_query_is_set_algebra(query: str, units: list[int]):
    sets = {latent: SETS.get(latent, BitMap()) for latent in range(LATENTS)}
    answer = parse(query, LATENTS, LABELS).answer(sets.__getitem__, EVERYTHING)
    assert list(answer) == units


@pytest.mark.parametrize(
    ("query", "told", "place"),
    [
        ("", 'expected a latent, a label, "!" or "(", found the end', 0),
        ("1 &", 'expected a latent, a label, "!" or "(", found the end', 3),
        ("1 & & 2", 'expected a latent, a label, "!" or "(", found "&"', 4),
        ("1 2", 'expected "&", "|" or the end, found "2"', 2),
        ("(1 | 2", 'expected ")", found the end', 6),
        ("1 & $2", "cannot read '$'", 4),
        ("1 & 100", "latent 100 is out of range: the coder has 0 to 99", 4),
        ("at most 2 of (1)", 'expected "least", found "most"', 3),
        ("at least x of (1)", 'expected a number, found "x"', 9),
        ("at least 3 of (1, 2)", "at least 3 of 2 cannot be", 9),
        ("at least 0 of (1, 2)", "at least 0 of 2 cannot be", 9),
        ("1 & castle", 'no latent has the label "castle"', 4),
        ("twice", '"twice" is the label of latents [7, 8]; give one of the numbers', 0),
        ("(" * 101 + "1" + ")" * 101, "more than 100 parts inside each other", 100),
        ("!" * 5000 + "1", "more than 100 parts inside each other", 100),
    ],
)
def test_a_mistake_is_shown_at_its_place(query: str, told: str, place: int):
    with pytest.raises(QueryError) as error:
        parse(query, LATENTS, LABELS)
    first, shown, mark = str(error.value).split("\n")
    assert first == f"{told}, at character {place + 1}:"
    assert shown == f"    {query}"
    assert mark.index("^") == place + 4


def test_a_label_needs_a_file_of_labels():
    with pytest.raises(QueryError, match=r"there are no labels \(--labels\)"):
        parse("tower", LATENTS)
