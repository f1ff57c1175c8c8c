"""One table of the cases that the shared checks run over."""

import pytest

from sae_binary_ext.coding.selection import CodeRule

LATENTS = 24
GROUPS = 6

RULES = (
    [
        CodeRule(selection, GROUPS, surrogate, temperature)
        for selection in ("topk", "groupmax", "threshold")
        for surrogate in ("sigmoid", "rectangle", "reste", "identity")
        for temperature in (0.7, 2.0)
    ]
    + [
        CodeRule("topk", k, surrogate, 0.7, learning)
        for surrogate in ("sigmoid", "rectangle", "reste", "identity")
        for k, learning in ((GROUPS, "all"), (4, "near"))
    ]
    + [CodeRule("gumbel", GROUPS, "sigmoid", temperature) for temperature in (0.5, 2.0)]
)


def rule_id(rule: CodeRule) -> str:
    name = f"{rule.selection}-{rule.surrogate}-T{rule.surrogate_temperature}"
    return name if rule.surrogate_latents == "selected" else f"{name}-{rule.surrogate_latents}"


each_rule = pytest.mark.parametrize("rule", RULES, ids=rule_id)
each_indexed_rule = pytest.mark.parametrize(
    "rule",
    [
        rule
        for rule in RULES
        if rule.selection in ("topk", "groupmax") and rule.surrogate_latents != "all"
    ],
    ids=rule_id,
)
SELECTIONS = ("topk", "groupmax", "threshold", "gumbel")
each_selection = pytest.mark.parametrize("selection", SELECTIONS)
