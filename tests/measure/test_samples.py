import pytest
import torch

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import PlaceSamples


def test_every_firing_is_as_likely_to_be_sampled():
    length, trials, most, radius = 60, 300, 6, 12
    active = torch.arange(length)[:, None] % 3 == 0
    drawn = torch.zeros(2 * length)
    for trial in range(trials):
        samples = PlaceSamples(1, most, radius)
        samples.batches.fill_(2 * trial)  # each trial has other random numbers
        for batch in range(2):
            ids = torch.arange(length)[None] + length * batch
            text = TextBatch(ids, torch.tensor([length]), [0])
            samples.add(text, text.positions(0), active, active.float())
        assert samples.documents.eq(0).all()
        inside = samples.tokens[0][(samples.tokens[0] >= 0).all(1)]
        drawn.index_add_(0, inside[:, radius], torch.ones(len(inside)))
    whole = torch.arange(2 * length) % length
    whole = (whole >= radius) & (whole < length - radius)
    fires = active.flatten().repeat(2)
    assert drawn[~fires].sum() == 0
    expected = trials * most / fires.sum().item()
    found = drawn[whole & fires]
    assert found.mean().item() == pytest.approx(expected, rel=0.1)
    assert (found > expected / 3).all()
    assert (found < expected * 2).all()
