from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sae_binary_ext.commands.compare.compare_page import latent_views, promoted_tokens
from sae_binary_ext.measure import Candidate, ComparedCoder, Site
from sae_binary_ext.measure.matching import Matches
from tests.measure.test_figures import activations, coders, run

VOCABULARY = 20


class Model(nn.Module):
    """The parts of a model that decide which tokens a latent promotes."""

    def __init__(self, width: int, *, scale: bool) -> None:
        super().__init__()
        self.W_U = torch.eye(width, VOCABULARY) + torch.eye(width, VOCABULARY).roll(10, 1) / 2
        self.ln_final = nn.LayerNorm(width) if scale else nn.Identity()


class Numbers:
    """A tokenizer that shows each token id as a number."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_promoted_tokens_are_those_of_the_largest_logits():
    rows = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.4, -1.0]])
    model: Any = Model(3, scale=False)
    found = promoted_tokens(rows, model)
    assert [tokens[:3] for tokens in found] == [[1, 11, 2], [0, 10, 1]]
    scaled: Any = Model(3, scale=True)
    with torch.no_grad():
        scaled.ln_final.weight.copy_(torch.tensor([1.0, 0.1, 1.0]))
    assert promoted_tokens(rows, scaled)[0][:3] == [2, 12, 1]


def test_rows_that_are_not_of_the_residual_stream_promote_nothing():
    model: Any = Model(5, scale=False)
    assert promoted_tokens(torch.ones(2, 3), model) == [[], []]
    other: Any = nn.Identity()
    assert promoted_tokens(torch.ones(2, 3), other) == [[], []]


def test_views_are_the_samples_by_falling_rate():
    coder, x = coders()["stock"], activations()
    running, variance = run(coder, x, 4)
    rates = running.figures(variance).rates
    model: Any = Model(3, scale=False)
    tokenizer: Any = Numbers()
    correlations = torch.tensor([0.5, 0.9, -torch.inf, 0.1])
    matches = {"other": Matches(torch.tensor([8, 6, 0, 7]), correlations)}
    unused: Any = None
    candidate = Candidate("stock", Path(), coder, Site("a", "a"))
    figures = running.figures(variance)
    compared = ComparedCoder(candidate, figures, unused, 0.0, running.samples, unused, matches)
    views = latent_views(compared, model, tokenizer)
    by_number = sorted(views, key=lambda view: view.latent)
    assert [view.matches for view in by_number[:3]] == [
        [("other", 8, pytest.approx(0.5))],
        [("other", 6, pytest.approx(0.9))],
        [],
    ]
    assert sorted(view.latent for view in views) == running.samples.latents.tolist()
    assert [view.rate for view in views] == sorted((view.rate for view in views), reverse=True)
    active = coder.encode(x) != 0
    for view in views:
        assert view.rate == rates[view.latent]
        assert len(view.promoted) == 8
        for context in view.contexts:
            assert all(active[int(text), view.latent] == fired for text, fired in context)
