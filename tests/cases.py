"""The cases of the checks that all selections share, made from the package's own tables."""

import pytest

from sae_binary_ext.coding import SELECTIONS, SURROGATES
from sae_binary_ext.coding.selection import CodeRule
from tests.pairwise import Case, pairwise

LATENTS = 24
GROUPS = 6
TEMPERATURES = (0.7, 2.0)
# Each case is a selection, its k, and which latents learn.
LEARNING = [(name, GROUPS, "selected") for name in SELECTIONS] + [
    (name, k, learners)
    for name, kind in SELECTIONS.items()
    if kind.picks_largest
    for k, learners in ((GROUPS, "all"), (4, "near"))
]


def takes(selection: str, surrogate: str) -> bool:
    return surrogate in (SELECTIONS[selection].surrogates or SURROGATES)


RULES = [
    CodeRule(name, k, surrogate, temperature, learners)
    for name, k, learners in LEARNING
    for surrogate in SURROGATES
    if takes(name, surrogate)
    for temperature in TEMPERATURES[: 2 if learners == "selected" else 1]
]
# Rules of codes without temperatures, because codes do not depend on the surrogate.
CODE_RULES = [CodeRule(name, k, surrogate_latents=learners) for name, k, learners in LEARNING]


def rule_id(rule: CodeRule) -> str:
    name = f"{rule.selection}-{rule.surrogate}-T{rule.surrogate_temperature}"
    return name if rule.surrogate_latents == "selected" else f"{name}-{rule.surrogate_latents}"


each_rule = pytest.mark.parametrize("rule", RULES, ids=rule_id)
each_code_rule = pytest.mark.parametrize("rule", CODE_RULES, ids=rule_id)
each_indexed_rule = pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if rule.kind.pick and rule.surrogate_latents != "all"],
    ids=rule_id,
)
each_selection = pytest.mark.parametrize("selection", SELECTIONS)

# A test's loss uses one of these outputs, or all of them.
OUTPUTS = ("reconstruction", "rates", "codes", "pre-activations")
GRADIENT_FACTORS = {
    "learning": LEARNING,
    "surrogate": list(SURROGATES),
    "temperature": TEMPERATURES,
    "taken": (*((name,) for name in OUTPUTS), OUTPUTS),
    # Codes and pre-activations are computed at once, or the codes alone.
    "encode": ("at once", "codes alone"),
    # Products with threshold codes are sums of rows, or matrix products.
    "way": ("sums of rows", "matrix products"),
}


def makes_sense(case: Case) -> bool:
    return takes(case["learning"][0], case["surrogate"])


BY_PAIRS = pairwise(GRADIENT_FACTORS, makes_sense)


def _rule(case: Case) -> CodeRule:
    name, k, learners = case["learning"]
    return CodeRule(name, k, case["surrogate"], case["temperature"], learners)


def _id(case: Case) -> str:
    taken = "all" if len(case["taken"]) > 1 else case["taken"][0]
    return "-".join((rule_id(_rule(case)), taken, case["encode"], case["way"]))


each_gradient_case = pytest.mark.parametrize(
    ("rule", "taken", "encode", "way"),
    [
        pytest.param(_rule(case), case["taken"], case["encode"], case["way"], id=_id(case))
        for case in BY_PAIRS
    ],
)
