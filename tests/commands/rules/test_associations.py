"""Implications, duplicates and their hierarchy, counted by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_binary_ext.commands.rules.associations import associate, pair_counts
from sae_binary_ext.commands.rules.rule_codes import PackedCodes

TOKENS = 4000


def codes_of(*firings: range | list[int]) -> Tensor:
    """Codes, bool [TOKENS, latents], of latents that fire on the given tokens."""
    codes = torch.zeros(TOKENS, len(firings), dtype=torch.bool)
    for latent, tokens in enumerate(firings):
        codes[list(tokens), latent] = True
    return codes


CHAIN = codes_of(
    range(100),  # 0 implies 1 and 2
    range(400),  # 1 implies 2
    range(1200),  # 2, on 30% of the tokens
    range(3000),  # 3 is implied by 0 to 2, with a lift of 4/3, which is too low
    range(3000, 3100),  # 4 and 5 are duplicates: 97 / 100
    range(3000, 3097),
    range(2000, 2049),  # 6 would imply 7, and fires too seldom
    range(2000, 2060),  # 7
    [*range(198), 3500, 3501],  # 8: 198 of 200 firings are in 1 and in 2
    [*range(197), 3500, 3502, 3504],  # 9: one too few
)


def test_implications_and_duplicates_are_those_counted_by_hand():
    found = associate("coder", PackedCodes.of(CHAIN))
    pairs = {(each.latent, each.implied): each for each in found.implications}
    # 9 fires with 8 on 198 of 200 tokens, and 8 with 9 too.
    assert set(pairs) == {
        (0, 1), (0, 2), (1, 2), (0, 8), (0, 9), (8, 1), (8, 2), (5, 4), (8, 9), (9, 8)
    }  # fmt: skip
    chosen = pairs[8, 1]
    assert (chosen.both, chosen.fired, chosen.implied_fired) == (198, 200, 400)
    assert chosen.lift == pytest.approx(198 / 200 / (400 / TOKENS))
    alike = [(each.one, each.other, each.both, each.jaccard) for each in found.duplicates]
    assert alike == [(4, 5, 97, 97 / 100), (8, 9, 198, 198 / 202)]
    assert (found.tokens, found.counted, found.in_duplicates, found.implying) == (TOKENS, 9, 4, 5)


def test_the_hierarchy_leaves_out_what_follows():
    found = associate("coder", PackedCodes.of(CHAIN))
    assert found.links == [([0], [8, 9]), ([1], [2]), ([8, 9], [1])]
    # 2 and the duplicates 4 and 5 imply nothing more general.
    assert found.depths == [3, 1, 2, 1]
    assert found.depth == 3


def test_coders_without_implications_have_none():
    found = associate("coder", PackedCodes.of(codes_of(range(60), range(60, 200))))
    assert (found.implications, found.duplicates, found.links, found.depths) == ([], [], [], [])
    assert found.depth == 0


def test_pair_counts_are_exact():
    active = torch.rand(3000, 70, generator=torch.Generator().manual_seed(0)) < 0.15
    active[:, 7] = False
    both, fired = pair_counts(PackedCodes.of(active))
    whole = active.numpy().astype(np.int64)
    assert (both.toarray() == whole.T @ whole).all()
    assert (fired == whole.sum(0)).all()
