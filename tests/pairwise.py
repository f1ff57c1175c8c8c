"""A small set of cases that holds each pair of values of any two factors at least once."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]


def pairwise(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Case], bool] = lambda case: True
) -> list[Case]:
    """Cases that cover all pairs. Each next case is the one that adds the most missing pairs.

    Args:
        factors: the values of each factor.
        allowed: whether a case makes sense. Pairs that no allowed case holds are left out.
    """
    # Cases hold the values' positions instead of the values, which may be unhashable.
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
    """The pairs of values in a case. A value is a factor's number and the value's position."""
    return set(combinations(enumerate(places), 2))


def _case(factors: Mapping[str, Sequence[Any]], places: Sequence[int]) -> Case:
    return {name: values[at] for (name, values), at in zip(factors.items(), places, strict=True)}
