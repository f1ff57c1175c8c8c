import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import (
    FOLDS,
    PRIOR_FIRINGS,
    STRATA,
    LatentSamples,
    PlaceSamples,
    Predictability,
    predictability,
)

VOCABULARY, LENGTH, DOCUMENTS = 30, 40, 40


def sample(codes_of: Any, latents: int, documents: int = DOCUMENTS) -> LatentSamples:
    """Samples of random tokens, with codes that `codes_of` computes from the tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (documents, LENGTH), generator=generator)
    text = TextBatch(tokens, torch.full((documents,), LENGTH), list(range(documents)))
    samples = LatentSamples(latents, latents)
    samples.add(text, text.positions(0), codes_of(tokens).flatten(0, 1))
    return samples


def noise(tokens: Tensor) -> Tensor:
    return torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2))


def places(samples: PlaceSamples) -> list[tuple[int, list[int], float]]:
    """Places of the first latent: fold of the document, the token and its neighbours, the code."""
    there, middle = samples.there[0], samples.tokens.shape[2] // 2
    return [
        (document % FOLDS, tokens[middle - 1 : middle + 2], values[middle])
        for document, tokens, values in zip(
            samples.documents[0][there].tolist(),
            samples.tokens[0][there].tolist(),
            samples.values[0][there].tolist(),
            strict=True,
        )
    ]


def test_what_the_tokens_decide_is_predictable_and_what_they_do_not_is_not():
    def codes(tokens: Tensor) -> Tensor:
        beside = (tokens == 3).roll(1, 1)
        beside[:, 0] = False
        random = noise(tokens) < 0.05
        silent = torch.zeros_like(random)
        return torch.stack([tokens == 5, beside, random, silent], dim=-1).float()

    areas = predictability(sample(codes, 4)).areas
    assert areas[0, 0] > 0.98
    assert areas[1, 0] > 0.98
    assert 0.35 < areas[2, 0] < 0.65
    # Binary codes have no thirds, and a silent latent has no areas.
    assert areas[:, 1:].isnan().all()
    assert areas[3].isnan().all()


def test_a_token_of_which_no_silent_place_is_sampled_is_one_like_others():
    last = VOCABULARY - 1

    def codes(tokens: Tensor) -> Tensor:
        # The latent fires on the last token and beside it, so no silent place has this token.
        near = (tokens == last) | (tokens == last).roll(1, 1) | (tokens == last).roll(-1, 1)
        return near.float()[..., None]

    samples = sample(codes, 1)
    assert (samples.silent.tokens[samples.silent.there] == last).sum() == 0
    assert predictability(samples).areas[0, 0] > 0.95


def test_thirds_are_by_activation():
    def codes(tokens: Tensor) -> Tensor:
        # The latent fires strongly on tokens 5 and 6, and about as often weakly on random tokens.
        strong = (tokens == 5) | (tokens == 6)
        weak = (noise(tokens) < 0.07) & ~strong
        return (strong * (2 + noise(tokens)) + weak * noise(tokens))[..., None]

    estimates = {name: predictability(sample(codes, 1)).estimate(name).value for name in STRATA}
    assert estimates["high"] > 0.9
    assert estimates["low"] < 0.65
    assert estimates["low"] < estimates["middle"] < estimates["high"]
    assert estimates["low"] < estimates["all"] < estimates["high"]


def test_areas_are_those_of_the_definition():
    def codes(tokens: Tensor) -> Tensor:
        fires = (noise(tokens) < 0.1) | ((tokens < 4) & (noise(tokens) < 0.5))
        return (fires * (0.5 + noise(tokens)))[..., None]

    samples = sample(codes, 1, documents=12)
    firings, silent = (places(each) for each in (samples.firings, samples.silent))
    vocabulary = range(-1, VOCABULARY)

    def score(fold: int, tokens: list[int]) -> float:
        other_firings = [window for other, window, _ in firings if other != fold]
        other_silent = [
            token for other, window, _ in silent if other != fold for token in window
        ]  # fmt: skip
        total = 0.0
        for place, token in enumerate(tokens):
            common = (other_silent.count(token) + 1) / (len(other_silent) + len(vocabulary))
            times = sum(window[place] == token for window in other_firings)
            share = (times + PRIOR_FIRINGS * common) / (len(other_firings) + PRIOR_FIRINGS)
            total += math.log(share) - math.log(common)
        return round(total, 9)

    values = sorted(value for _, _, value in firings)
    rank = {value: place for place, value in enumerate(values)}
    areas = predictability(samples).areas[0]
    for stratum, third in (("all", None), ("low", 0), ("middle", 1), ("high", 2)):
        won = [
            (one > other) + (one == other) / 2
            for (fold, window, value), (other_fold, other_window, _) in product(firings, silent)
            if fold == other_fold and third in (None, 3 * rank[value] // len(values))
            for one, other in [(score(fold, window), score(fold, other_window))]
        ]
        assert areas[STRATA.index(stratum)].item() == pytest.approx(sum(won) / len(won), abs=1e-6)


@pytest.mark.parametrize(("one", "other"), [(6, 6), (5, 7), (7, 5), (6, 5), (30, 0), (30, 6)])
def test_of_a_latent_that_fires_too_seldom_nothing_is_said(one: int, other: int):
    def codes(tokens: Tensor) -> Tensor:
        fires = torch.zeros(tokens.shape)
        fires[0, :one] = 1
        fires[1, :other] = 1
        return fires[..., None]

    # Firings of a document are measured only if the other document has at least six firings.
    asked = one * (other >= 6) + other * (one >= 6)
    assert predictability(sample(codes, 1)).areas[0, 0].isfinite() == (asked >= 12)


def test_the_median_leaves_out_latents_of_which_nothing_is_said():
    areas = torch.full((5, 4), math.nan, dtype=torch.float64)
    areas[:4, 0] = torch.tensor([0.5, 0.6, 0.7, 0.9])
    estimate = Predictability(areas).estimate("all")
    assert estimate.value == pytest.approx(0.6)
    assert 0.5 <= estimate.low <= 0.6 <= estimate.high <= 0.9
    assert math.isnan(Predictability(areas).estimate("low").value)
