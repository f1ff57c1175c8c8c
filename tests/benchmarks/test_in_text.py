"""Features of text are found in tokens, and latents explain the variance that they should."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.synthetic import in_text
from benchmarks.synthetic.in_text import (
    Samples,
    explained,
    number_sizes,
    sentence_places,
    share_explained,
)
from sae_binary_ext.measure.documents import TextBatch


def known(values: list[float]) -> dict[int, float]:
    return {place: value for place, value in enumerate(values) if not math.isnan(value)}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["in", " ", "1", "9", "8", "4", ","], {5: math.log10(1984)}),
        ([" 12", " 100"], {0: math.log10(12), 1: 2}),
        (["7"], {0: math.log10(7)}),
        (["0", "x", *"1234567890"], {}),  # zero has no logarithm, and ten digits are a code
        (["no"], {}),
    ],
)
def test_the_size_of_a_number_is_at_its_last_digit(tokens: list[str], expected: dict[int, float]):
    assert known(number_sizes(tokens)) == pytest.approx(expected)


def test_places_count_from_the_end_of_the_last_sentence():
    found = sentence_places(["of", " it", ".", "So", " it", " is", "?", " Yes"])
    assert known(found) == pytest.approx({3: 0, 4: 1, 5: math.log2(3), 6: 2, 7: 0})


@pytest.fixture
def samples() -> Samples:
    """A value from 0 to 1. Latent 0 has it, latents 1 to 3 fire above a quarter, half and three."""
    torch.manual_seed(0)
    values = torch.rand(4000, dtype=torch.float64)
    steps = [(values > step).float() for step in (0.25, 0.5, 0.75)]
    noise = (torch.rand(4000, 4) > 0.5).float()
    codes = torch.cat([values.float()[:, None], torch.stack(steps, dim=1), noise], dim=1)
    return Samples(codes, values, torch.arange(4000) // 40)


def test_one_value_tells_what_takes_several_bits(samples: Samples):
    assert explained(samples, 1).value == pytest.approx(1)
    bits = Samples(samples.codes[:, 1:], samples.values, samples.documents)
    shares = [explained(bits, number).value for number in (1, 2, 3)]
    # A split into n equal parts leaves 1 / n² of an even spread's variance.
    assert shares[0] == pytest.approx(1 - 1 / 4, abs=0.02)
    assert shares[2] == pytest.approx(1 - 1 / 16, abs=0.02)
    assert shares[0] < shares[1] < shares[2]


def test_latents_are_chosen_on_other_documents_than_they_are_measured_on(samples: Samples):
    # In documents that are measured, the latents say nothing.
    changed = samples.codes.clone()
    changed[samples.documents % 2 == 1] = 0
    share = explained(Samples(changed, samples.values, samples.documents), 4)
    assert share.value < 0


def test_intervals_are_over_documents():
    values = torch.arange(100, dtype=torch.float64)
    one: Any = share_explained(values, values + 1, torch.zeros(100, dtype=torch.int64))
    assert math.isnan(one.low)
    many = share_explained(values, values + 1, torch.arange(100))
    assert many.value == pytest.approx(1 - 100 / (values - values.mean()).square().sum().item())
    assert many.low < many.value < many.high


def test_tokens_are_of_many_documents_with_their_own_codes(monkeypatch: pytest.MonkeyPatch):
    words = {"w": 0, ".": 1}

    class Batch:
        """Four rows of a document each. The code of a token is its number in the batch."""

        def __init__(self, first: int) -> None:
            tokens = torch.tensor([[words["."], *[words["w"]] * 49]] * 4)
            documents = list(range(first, first + 4))
            self.text = TextBatch(tokens, torch.full((4,), 50), documents)
            self.where = self.text.positions(1)
            self.numbers = torch.arange(200).view(4, 50)[self.where].float()

        def codes(self, coder: Any, hook: str) -> torch.Tensor:
            return torch.stack([self.numbers, self.numbers % 50], dim=1)

    batches = [Batch(4 * number) for number in range(20)]
    monkeypatch.setattr(in_text, "read_text", lambda *given: batches)
    monkeypatch.setattr(in_text, "MOST_TOKENS", 1000)
    decode = {number: word for word, number in words.items()}
    opened: Any = SimpleNamespace(
        candidates=[SimpleNamespace(name="it", coder=None, site="here")],
        hooks={"here": ("hook", "hook")},
        tokenizer=SimpleNamespace(decode=lambda tokens: decode[tokens[0]]),
    )
    config: Any = SimpleNamespace(tokens=20 * 4 * 49)
    found = in_text.read_samples(opened, config, "place in a sentence")["it"]
    assert len(found.values) == pytest.approx(1000, rel=0.1)
    assert len(found.documents.unique()) > 70
    # A row begins with the end of a sentence, so a token's place in the row tells its value.
    assert torch.allclose(found.values, found.codes[:, 1].double().log2())
