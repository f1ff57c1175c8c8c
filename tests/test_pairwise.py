from itertools import product

from tests.cases import BY_PAIRS, GRADIENT_FACTORS, makes_sense
from tests.pairwise import pairs_of, pairwise


def test_every_pair_of_values_occurs_in_few_cases():
    factors = {"a": range(4), "b": range(4), "c": "xyz", "d": [True, False]}
    cases = pairwise(factors)
    every = set().union(*(pairs_of(values) for values in product(*factors.values())))
    assert set().union(*(pairs_of(list(case.values())) for case in cases)) == every
    assert 16 <= len(cases) <= 20


def test_pairs_without_an_allowed_case_are_left_out():
    cases = pairwise({"a": [0, 1], "b": [0, 1], "c": [0, 1]}, lambda case: case["a"] <= case["b"])
    assert {(case["a"], case["b"]) for case in cases} == {(0, 0), (0, 1), (1, 1)}


def test_the_cases_of_the_gradients_have_every_pair_that_makes_sense():
    names = list(GRADIENT_FACTORS)
    every = (
        dict(zip(names, values, strict=True)) for values in product(*GRADIENT_FACTORS.values())
    )
    wanted = set().union(*(pairs_of(list(case.values())) for case in every if makes_sense(case)))
    assert set().union(*(pairs_of(list(case.values())) for case in BY_PAIRS)) == wanted
