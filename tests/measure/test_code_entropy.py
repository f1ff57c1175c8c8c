"""Bounds on the entropy are right for codes drawn from known distributions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import bernoulli_entropy
from sae_binary_ext.measure import code_entropy
from sae_binary_ext.measure.code_entropy import CodeEntropy, GatheredCodes

TOKENS, DOCUMENTS = 20_000, 40


def entropy_of(codes: Tensor, parts: int = 3) -> CodeEntropy:
    gathered = GatheredCodes(codes.shape[1])
    documents = torch.arange(len(codes)) * DOCUMENTS // len(codes)
    for part in torch.arange(len(codes)).chunk(parts):
        gathered.add(codes[part], documents[part])
    return gathered.entropy()


def coins(latents: int, rate: float = 0.5) -> Tensor:
    return torch.rand(TOKENS, latents) < rate


def twice_and_contrary() -> Tensor:
    once = coins(8)
    return torch.cat([once, once, ~once], dim=1)


def noisy_copies() -> Tensor:
    once = coins(6)
    return torch.cat([once, once ^ coins(6, 0.1)], dim=1)


def one_of_four() -> Tensor:
    """Groups of four latents; exactly one latent of each group fires: 2 bits a group."""
    return torch.nn.functional.one_hot(torch.randint(4, (TOKENS, 5)), 4).flatten(1).bool()


def either() -> Tensor:
    """Triples of latents; the third fires if exactly one of the other two fires."""
    one, other = coins(4), coins(4)
    return torch.cat([one, other, one ^ other], dim=1)


ONE_OF_TEN = bernoulli_entropy(torch.tensor(0.1)).item()
QUARTER = bernoulli_entropy(torch.tensor(0.25)).item()
# Each case: a source, its entropy, and the bounds by independent latents, tree and blocks.
CASES: dict[str, tuple[Callable[[], Tensor], float, float, float, float]] = {
    "coins": (lambda: coins(12), 12, 12, 12, 12),
    "rare": (
        lambda: coins(12, 0.1),
        12 * ONE_OF_TEN,
        12 * ONE_OF_TEN,
        12 * ONE_OF_TEN,
        12 * ONE_OF_TEN,
    ),
    "copies": (twice_and_contrary, 8, 24, 8, 8),
    "noisy copies": (noisy_copies, 6 + 6 * ONE_OF_TEN, 12, 6 + 6 * ONE_OF_TEN, 6 + 6 * ONE_OF_TEN),
    # A tree uses three of the six pairs of a group. If a latent's parent is silent, the latent
    # fires with probability 1/3.
    "one of four": (
        one_of_four,
        10,
        20 * QUARTER,
        5 * (QUARTER + 3 * 0.75 * bernoulli_entropy(torch.tensor(1 / 3)).item()),
        10,
    ),
    "either": (either, 8, 12, 12, 12),
    "dead and always on": (
        lambda: torch.cat([torch.zeros(TOKENS, 5).bool(), torch.ones(TOKENS, 5).bool()], dim=1),
        0,
        0,
        0,
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bounds_are_those_of_the_source(name: str):
    source, truth, *expected = CASES[name]
    found = entropy_of(source())
    bounds = [found.independent, found.tree, found.blocks]
    assert [bound.value for bound in bounds] == pytest.approx(expected, rel=0.01, abs=0.02)
    assert min(bound.value for bound in bounds) > truth - 0.05
    assert found.seen <= min(truth, found.most_seen) + 1e-9
    assert found.most_seen == pytest.approx(math.log2(TOKENS))
    assert found.fitted_tokens == found.measured_tokens == TOKENS // 2


def test_what_is_seen_of_a_small_source_is_its_entropy():
    assert entropy_of(coins(4)).seen == pytest.approx(4, abs=0.01)


def test_intervals_are_narrow_for_like_documents_and_wide_for_unlike_ones():
    alike = entropy_of(coins(20, 0.2)).independent
    of_document = torch.rand(DOCUMENTS, 1) * 0.4
    unlike = torch.rand(TOKENS, 20) < of_document.repeat_interleave(TOKENS // DOCUMENTS, 0)
    differing = entropy_of(unlike).independent
    assert alike.low < alike.value < alike.high
    assert differing.high - differing.low > 5 * (alike.high - alike.low)


def test_batches_make_no_difference():
    codes = noisy_copies()
    assert entropy_of(codes, parts=1) == entropy_of(codes, parts=7)


def test_latents_whose_pairs_are_not_counted_are_independent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code_entropy, "MOST_PAIRED", 8)
    fair, rare = coins(4), coins(4, 0.1)
    found = entropy_of(torch.cat([rare, fair, rare, fair], dim=1))
    # Only pairs of the fair latents are counted, because these have the most entropy.
    assert found.tree.value == pytest.approx(4 + 8 * ONE_OF_TEN, abs=0.03)


def test_a_single_token_is_refused():
    with pytest.raises(ValueError, match="tokens=1"):
        entropy_of(torch.ones(1, 3).bool(), parts=1)
