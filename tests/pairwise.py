"""Few cases that have each pair of values of any two factors at least once."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]


def pairwise(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Case], bool] = lambda case: True
) -> list[Case]:
    """Cases that cover all pairs, by taking each time the case with the most pairs still missing.

    Args:
        factors: the values of each factor.
        allowed: whether a case makes sense. Pairs that no such case has are left out.
    """
    # Pairs of places among the values, which need not be hashable.
    cases = {
        places: pairs_of(places)
        for places in product(*(range(len(values)) for values in factors.values()))
        if allowed(_case(factors, places))
    }
    missing = set[tuple[Any, ...]]().union(*cases.values())
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda places: len(missing & cases[places]))
        missing -= cases[best]
        chosen.append(_case(factors, best))
    return chosen


def pairs_of(places: Sequence[Any]) -> set[tuple[Any, ...]]:
    """The pairs of a case, each with the numbers of its two factors."""
    return set(combinations(enumerate(places), 2))


def _case(factors: Mapping[str, Sequence[Any]], places: Sequence[int]) -> Case:
    return {name: values[at] for (name, values), at in zip(factors.items(), places, strict=True)}
