import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands.interpret.config import (
    FEWEST_ASKED,
    FEWEST_SHOWN,
    SAMPLINGS,
    InterpretConfig,
    TextAmount,
)
from sae_binary_ext.commands.interpret.examples import (
    QUANTILES,
    LatentExamples,
    at_random,
    by_strength,
    choose_examples,
)
from sae_binary_ext.commands.interpret.windows import ReadLatents

LENGTH = 4


def read(windows: int, strength: Tensor | None = None) -> ReadLatents:
    """One latent that is active in `windows` windows; all tokens of window i have the id i."""
    counts = ReadLatents(1, TextAmount(1000, 100, 1, LENGTH, 1))
    found = counts.windows
    found.priorities[0, :windows] = torch.rand(windows, dtype=torch.float64)
    found.tokens[0, :windows] = torch.arange(windows)[:, None]
    found.values[0, :windows, 1] = 1.0 if strength is None else strength
    found.documents[0, :windows] = torch.arange(windows) % 3
    found.margins[0, :windows] = torch.arange(windows).float()
    counts.firings += windows
    counts.tokens += 1000
    return counts


def chosen(
    counts: ReadLatents, sampling: str = "random", silent: int = 200
) -> LatentExamples | str:
    pool = 1000 + torch.arange(300)[:, None].expand(-1, LENGTH)
    where = torch.arange(300) < silent
    return choose_examples(counts, 0, where, pool, InterpretConfig(sampling=sampling), None)


def test_documents_take_turns():
    documents = torch.tensor([4, 4, 4, 9, 4, 9, 5])
    order, quantiles = at_random(documents)
    assert documents[order].tolist() == [4, 9, 5, 4, 9, 4, 4]
    assert order.tolist() == [0, 3, 6, 1, 5, 2, 4]
    assert quantiles.unique().tolist() == [0]


def test_tenths_take_turns():
    strength = torch.randperm(43).float() + 1
    order, quantiles = by_strength(strength)
    # The three weakest windows are in no tenth, because 43 is not a multiple of ten.
    assert sorted(strength[order].tolist()) == sorted(strength.tolist())[3:]
    tenth = (43 - strength[order]) // 4
    assert quantiles[order].tolist() == tenth.tolist()
    assert tenth.view(-1, QUANTILES).tolist() == [list(range(QUANTILES))] * 4


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("windows", [FEWEST_SHOWN + FEWEST_ASKED, 40, 60, 250])
def test_none_is_shown_and_asked_about(sampling: str, windows: int):
    found = chosen(read(windows, torch.rand(windows)), sampling)
    assert isinstance(found, LatentExamples)
    shown, asked = set(found.shown.tokens[:, 0].tolist()), set(found.asked.tokens[:, 0].tolist())
    assert not shown & asked
    assert FEWEST_SHOWN <= len(shown) == min(20, windows // 3)
    assert FEWEST_ASKED <= len(asked) == min(40, windows - len(shown))
    assert (found.asked.values[:, 1] > 0).all()
    assert (found.latent, found.firings, found.rate) == (0, windows, windows / 1000)
    silent = [*found.silent_shown[:, 0].tolist(), *found.silent_asked[:, 0].tolist()]
    assert len(set(silent)) == len(shown) + len(asked)
    assert all(1000 <= token < 1200 for token in silent)
    if sampling != "random" and windows == 250:
        assert sorted(found.asked.quantiles) == sorted(list(range(QUANTILES)) * 4)
    if sampling == "margin" and windows == 250:
        assert found.asked.quantiles == (9 - found.asked.tokens[:, 0] // 25).tolist()


def test_a_latent_that_cannot_be_judged_says_why():
    assert chosen(read(0)) == "dead"
    assert chosen(read(FEWEST_SHOWN + FEWEST_ASKED - 1)) == "active in too few windows"
    assert chosen(read(100), silent=29) == "silent in too few windows"
    assert isinstance(chosen(read(100), silent=30), LatentExamples)


def test_hard_negatives_are_the_nearest():
    counts = read(100)
    pool = 1000 + torch.arange(300)[:, None].expand(-1, LENGTH)
    silent = torch.arange(300) % 2 == 0
    seen: list[Tensor] = []

    def nearest(shown: Tensor, where: Tensor) -> Tensor:
        seen.extend((shown, where))
        return torch.arange(int(where.sum())).flip(0)

    found = choose_examples(counts, 0, silent, pool, InterpretConfig(), nearest)
    assert isinstance(found, LatentExamples)
    assert torch.equal(seen[0], found.shown.tokens)
    tokens = [*found.silent_shown[:, 0].tolist(), *found.silent_asked[:, 0].tolist()]
    assert sorted(tokens) == list(range(1000 + 298 - 2 * 59, 1000 + 299, 2))


@pytest.mark.parametrize(("shown", "asked"), [(9, 40), (20, 19)])
def test_too_few_windows_are_refused(shown: int, asked: int):
    with pytest.raises(ValueError, match="give a number of at least"):
        InterpretConfig(shown=shown, asked=asked)
