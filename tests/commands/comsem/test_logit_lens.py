"""Names of latents come from one half of the documents, and are tested on the other half."""

import pytest
import torch

from sae_binary_ext.commands.comsem.logit_lens import NamedLatent, TokenCounts, share_in_name
from sae_binary_ext.commands.comsem.logit_lens_page import lens_figures
from sae_binary_ext.measure.documents import TextBatch

VOCABULARY = 30


@pytest.fixture
def counts() -> TokenCounts:
    """Counts of two latents of three on two documents, each of one row.

    Latent 2 fires on token 5. Latent 0 fires on each token that counts.
    """
    tokens = torch.tensor([[0, 5, 7, 5, 8, 9], [0, 5, 7, 6, 5, 9]])
    text = TextBatch(tokens, torch.tensor([6, 5]), [0, 1])
    where = text.positions(1)
    where[0, 3] = False  # a token of outlying norm
    codes = torch.zeros(int(where.sum()), 3)
    codes[:, 0] = 1
    codes[:, 2] = tokens[where] == 5
    found = TokenCounts(torch.tensor([0, 2]), VOCABULARY)
    found.add(text, where, codes)
    return found


def test_tokens_are_counted_by_half_with_the_token_after_them(counts: TokenCounts):
    # The last token of a row has none after it, and padding is no token.
    assert counts.all_own.nonzero().tolist() == [[0, 5], [0, 7], [0, 8], [1, 5], [1, 6], [1, 7]]
    assert counts.all_own.sum(1).tolist() == [3, 3]
    assert counts.own[:, 1].nonzero().tolist() == [[0, 5], [1, 5]]
    assert counts.after[:, 1].nonzero().tolist() == [[0, 7], [1, 7]]
    assert counts.all_after.nonzero().tolist() == [[0, 5], [0, 7], [0, 9], [1, 5], [1, 6], [1, 7]]


def test_a_latent_reads_what_it_fires_on_more_often_than_chance(counts: TokenCounts):
    names = counts.names()
    assert names[1, 0] == 5
    assert names[1, 1:].eq(-1).all()
    assert set(names[0].tolist()) == {5, 7, 8, -1}


def test_the_rank_favours_tokens_that_are_rare_elsewhere():
    found = TokenCounts(torch.tensor([0]), VOCABULARY)
    found.own[0, 0, 3], found.own[0, 0, 4] = 10, 8
    found.all_own[0, 3], found.all_own[0, 4], found.all_own[0, 6] = 1000, 8, 992
    assert found.names()[0, :2].tolist() == [4, 3]


def test_a_name_tells_its_share_of_firings_less_that_of_all_tokens(counts: TokenCounts):
    names = torch.full((2, 10), -1)
    names[:, 0] = 5
    own = share_in_name(counts.own[1], counts.all_own[1], names)
    assert own.tolist() == pytest.approx([0, 1 - 1 / 3])
    names[:, 1] = 7
    after = share_in_name(counts.after[1], counts.all_after[1], names)
    assert after.tolist() == pytest.approx([0, 1 - 2 / 3])


def test_figures_are_means_over_latents_that_fire_often_enough():
    latents = [
        NamedLatent("a", 0, 50, ["x"], ["y"], 0.5, 0.1, 0.2, 0.7),
        NamedLatent("a", 1, 50, ["x"], ["y"], 0.3, 0.1, 0.0, 0.1),
        NamedLatent("a", 2, 3, [], ["y"]),
        NamedLatent("b", 0, 50, ["x"], ["y"], 0.2, 0.1, 0.0, 0.1),
    ]
    a, b = lens_figures(latents)
    assert (a.drawn, a.scored, b.scored) == (3, 2, 1)
    assert a.own_by_read.value == pytest.approx(0.4)
    assert a.next_by_written.value == pytest.approx(0.4)
    assert a.written_ahead.value == 0.5
    assert b.next_by_read.value == 0
