"""Changes that cannot be made are refused, and say what to do."""

from typing import Any

import pytest
from torch import nn

from sae_binary_ext.steering import CodeChange
from tests.layer_coders import LATENTS
from tests.steering.models import binary, sparsify_binary, sparsify_topk, topk

REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (binary, {}, "name no latent. Name at least one"),
    "twice": (binary, {"set": [3, 4], "flip": [4]}, r"set, flip: both name \[4\]"),
    "too large": (binary, {"clear": [LATENTS]}, rf"clear=\[{LATENTS}\]: the coder has {LATENTS}"),
    "negative": (topk, {"clear": [-1]}, rf"Give numbers from 0 to {LATENTS - 1}"),
    "rule": (binary, {"set": [1], "where": "99"}, r"where=\[99\]: the coder has"),
    "text": (binary, {"set": [1], "where": "x"}, "where='x': cannot read 'x'"),
    "position": (binary, {"set": [1], "first_position": -1}, "first_position=-1: give a number"),
    "strength": (binary, {"set": [1], "strength": 2.0}, "is 0 or 1, and its decoder row"),
    "strength, sparsify": (sparsify_binary, {"set": [1], "strength": 2.0}, "Leave strength out"),
    "no strength": (topk, {"set": [1]}, "TopKSAE has codes with values, so set need"),
    "no strength, sparsify": (sparsify_topk, {"flip": [1]}, "so flip need a value"),
    "weak": (topk, {"set": [1], "strength": 0.0}, "strength=0.0: give a positive number"),
    "no coder": (lambda: nn.Linear(2, 2), {"set": [1]}, "coder=Linear: is no coder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_change_that_cannot_be_made_is_refused(case: str):
    make, fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        CodeChange(make(), **fields)


def test_a_stock_latent_is_cleared_without_strength():
    assert CodeChange(topk(), clear=[3, 1]).latents == (1, 3)
