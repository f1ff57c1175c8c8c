import pytest
import torch

from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.measure.samples import PlaceSamples, Reservoir


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


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_each_list_has_the_entries_of_the_highest_priorities(share: float):
    lists, most, batches, size = 4, 5, 6, 30
    reservoir = Reservoir(lists, most)
    reservoir.register_buffer("numbers", torch.full((lists, most, 2), -1))
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(batches, size, lists, generator=generator) < share
    widths: list[int] = []
    for batch in range(batches):
        entries, priorities = reservoir.draw(chosen[batch])
        numbers = (entries + size * batch)[..., None] * torch.tensor([1, 10])
        reservoir.keep(priorities, numbers=numbers)
        widths.append(entries.shape[1])
    seeds = [torch.Generator().manual_seed(batch) for batch in range(batches)]
    draws = [torch.rand(size, lists, dtype=torch.float64, generator=own) for own in seeds]
    every = torch.where(chosen, torch.stack(draws), -torch.inf).flatten(0, 1)
    priorities, numbers = every.topk(most, dim=0)
    torch.testing.assert_close(reservoir.priorities, priorities.T)
    there = reservoir.there
    assert int(there.sum()) == int(chosen.flatten(0, 1).sum(0).clamp(max=most).sum())
    kept = reservoir.get_buffer("numbers")[there]
    assert torch.equal(kept, numbers.T[there][:, None] * torch.tensor([1, 10]))
    # Entries that no list can keep are not looked at.
    assert widths[-1] < most
    assert widths[0] == min(most, int(chosen[0].sum(0).max()))
