"""Rules over latents are read from text, and hold where they say."""

import re

import pytest
import torch

from sae_binary_ext.steering import Rule, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1203", Rule((1203,))),
        ("1203 & !7", Rule((1203,), (7,))),
        ("!7&5&  ! 3 & 5", Rule((5,), (3, 7))),
    ],
)
def test_a_rule_is_read(text: str, rule: Rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "7 &", "7 | 8", "!!7", "-3", "latent 4", "7 8", "1.5"])
def test_a_text_that_is_no_rule_is_refused(text: str):
    with pytest.raises(ValueError, match=re.escape(f"where={text!r}: cannot read")):
        parse_rule(text)


def test_a_rule_that_no_token_fulfils_is_refused():
    with pytest.raises(ValueError, match=r"no token fulfils it, because \[7\] must be active and"):
        parse_rule("7 & 3 & !7")


def test_a_rule_holds_where_its_latents_fire_and_are_silent():
    codes = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0.2, 0, 3]])
    assert Rule((0,), (1,)).holds(codes).tolist() == [True, False, False, True]
    assert Rule((0, 2)).holds(codes).tolist() == [False, False, False, True]
    assert Rule(silent=(0, 1)).holds(codes).tolist() == [False, False, True, False]
    assert Rule().holds(codes).all()
