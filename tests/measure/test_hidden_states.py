"""States are drawn evenly from a stream of unknown length."""

import pytest
import torch

from sae_binary_ext.measure.hidden_states import EvenlyDrawn


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
@pytest.mark.parametrize("length", [1, 50, 51, 99, 100, 101, 137, 400, 1000])
def test_as_many_as_there_are_and_from_everywhere(length: int, batch: int):
    evenly = EvenlyDrawn(50)
    for part in torch.arange(length)[:, None].split(batch):
        evenly.add(part)
    drawn = evenly.drawn()
    assert drawn.dtype == torch.float16
    assert drawn.shape == (min(length, 50), 1)
    if length <= 50:
        assert drawn[:, 0].tolist() == list(range(length))
    else:
        gaps = drawn[:, 0].float().diff()
        # No state is drawn twice, gaps are small, and both ends of the stream are covered.
        assert gaps.min() >= 1
        assert gaps.max() <= 2 * length / 50 + 1
        assert drawn[0] == 0
        assert length - drawn[-1].item() <= 2 * length / 50 + 1


def test_how_the_stream_is_cut_makes_no_difference():
    states = torch.arange(777)[:, None]
    found = []
    for batch in (1, 13, 777):
        evenly = EvenlyDrawn(50)
        for part in states.split(batch):
            evenly.add(part)
        found.append(evenly.drawn())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
