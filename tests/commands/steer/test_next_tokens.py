"""Log probabilities at some positions are those of a whole pass; divergences are right."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.load_model import HookedProxyLM
from transformers import AutoTokenizer

from sae_binary_ext.commands.steer.next_tokens import (
    divergence,
    log_probabilities,
    log_probability_of,
)
from tests.steering import models
from tests.steering.models import MODELS, TOKENS


def proxy(folder: Path) -> Any:
    return HookedProxyLM(models.new_plain(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("make", [MODELS["bridge"], MODELS["hooked"], proxy])
def test_positions_are_those_of_a_whole_pass(make: Any, tiny_llama: Path):
    model = make(tiny_llama)
    with torch.no_grad():
        logits = models.plain(tiny_llama)(TOKENS).logits
    expected = logits.log_softmax(-1)
    found = log_probabilities(model, TOKENS, [2, 7])
    torch.testing.assert_close(found, expected[:, [2, 7]], rtol=1e-4, atol=1e-5)
    # No hook is left behind.
    torch.testing.assert_close(log_probabilities(model, TOKENS), expected, rtol=1e-4, atol=1e-5)


def test_a_divergence_is_that_of_the_first_distribution():
    own, steered = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(own, steered).item() == pytest.approx(expected)
    assert divergence(own, own).item() == 0


def test_a_name_has_the_probability_of_its_tokens_together():
    log_probability = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    found = log_probability_of(torch.tensor([[0, 3], [2, -1], [-1, -1]]), log_probability)
    assert found.exp()[0].tolist() == pytest.approx([0.5, 0.3, 0.0])
