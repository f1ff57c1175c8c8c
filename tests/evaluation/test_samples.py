import pytest
import torch

from sae_binary_ext.evaluation.documents import TextBatch
from sae_binary_ext.evaluation.samples import CONTEXTS, RADIUS, LatentSamples


def test_every_firing_is_as_likely_to_be_sampled():
    length, trials = 60, 300
    active = torch.arange(length)[:, None] % 3 == 0
    drawn = torch.zeros(2 * length)
    for trial in range(trials):
        samples = LatentSamples(1, 1)
        samples.batches.fill_(2 * trial)  # other random numbers in each trial
        for batch in range(2):
            ids = torch.arange(length)[None] + length * batch
            text = TextBatch(ids, torch.tensor([length]), [0])
            samples.add(text, text.positions(0), active)
        for context in samples.contexts(0):
            if len(context.tokens) == 2 * RADIUS + 1:
                drawn[context.tokens[RADIUS]] += 1
    whole = torch.arange(2 * length) % length
    whole = (whole >= RADIUS) & (whole < length - RADIUS)
    fires = active.flatten().repeat(2)
    assert drawn[~fires].sum() == 0
    expected = trials * CONTEXTS / fires.sum().item()
    found = drawn[whole & fires]
    assert found.mean().item() == pytest.approx(expected, rel=0.1)
    assert (found > expected / 3).all()
    assert (found < expected * 2).all()
