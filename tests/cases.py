"""One table of the cases that the shared checks run over, made of the package's own tables."""

import pytest

from sae_binary_ext.coding import SELECTIONS, SURROGATES
from sae_binary_ext.coding.selection import CodeRule

LATENTS = 24
GROUPS = 6
# Two temperatures for each selection that takes all surrogates, and for the others.
TEMPERATURES, OWN_TEMPERATURES = (0.7, 2.0), (0.5, 2.0)

RULES = [
    CodeRule(name, GROUPS, surrogate, temperature)
    for name, kind in SELECTIONS.items()
    for surrogate in kind.surrogates or SURROGATES
    for temperature in (OWN_TEMPERATURES if kind.surrogates else TEMPERATURES)
] + [
    CodeRule(name, k, surrogate, 0.7, learning)
    for name, kind in SELECTIONS.items()
    if kind.picks_largest
    for surrogate in SURROGATES
    for k, learning in ((GROUPS, "all"), (4, "near"))
]


def rule_id(rule: CodeRule) -> str:
    name = f"{rule.selection}-{rule.surrogate}-T{rule.surrogate_temperature}"
    return name if rule.surrogate_latents == "selected" else f"{name}-{rule.surrogate_latents}"


each_rule = pytest.mark.parametrize("rule", RULES, ids=rule_id)
each_indexed_rule = pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if rule.kind.pick and rule.surrogate_latents != "all"],
    ids=rule_id,
)
each_selection = pytest.mark.parametrize("selection", SELECTIONS)
