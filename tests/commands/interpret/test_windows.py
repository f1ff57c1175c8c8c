import torch
from sae_lens import TopKSAE, TopKSAEConfig

from sae_binary_ext.commands.interpret.windows import (
    ActiveWindows,
    WindowPool,
    codes_and_margins,
    cut_windows,
)
from sae_binary_ext.measure.documents import TextBatch
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

LENGTH = 4
WIDTH, LATENTS, K = 8, 30, 4
DRAWN = torch.tensor([0, 3, 17, 29])


def text() -> TextBatch:
    """Three rows of 14, 9 and 4 tokens; a token's id is 100 · row + position."""
    tokens = torch.arange(14)[None] + 100 * torch.arange(3)[:, None]
    return TextBatch(tokens, torch.tensor([14, 9, 4]), [7, 7, 8])


def test_windows_are_whole_and_do_not_overlap():
    windows = cut_windows(text(), 1, LENGTH)
    assert windows.tokens[:, 0].tolist() == [1, 5, 9, 101, 105]
    assert (windows.tokens.diff(dim=1) == 1).all()
    assert windows.documents.tolist() == [7, 7, 7, 7, 7]
    assert torch.equal(text().tokens[windows.rows, windows.positions], windows.tokens)
    assert cut_windows(text(), 0, LENGTH).tokens[-1].tolist() == [200, 201, 202, 203]


def test_active_windows_are_kept_with_their_codes():
    windows = cut_windows(text(), 1, LENGTH)
    values = torch.zeros(len(windows.tokens), LENGTH, 3)
    values[1, 2, 0], values[3, 0, 0], values[4, 3, 2] = 0.5, 2.0, 1.0
    samples = ActiveWindows(3, LENGTH)
    margins = torch.full_like(values, 9.0)
    margins[values != 0] = torch.tensor([0.25, 0.75, -0.5])
    samples.add(windows, values, margins)
    assert samples.seen.tolist() == [2, 0, 1]
    assert samples.there.sum(1).tolist() == [2, 0, 1]
    found = {
        int(tokens[0]): codes.tolist()
        for tokens, codes in zip(samples.tokens[0, :2], samples.values[0, :2], strict=True)
    }
    assert found == {5: [0, 0, 0.5, 0], 101: [2.0, 0, 0, 0]}
    assert samples.tokens[2, 0].tolist() == [105, 106, 107, 108]
    assert samples.values[2, 0].tolist() == [0, 0, 0, 1]
    assert samples.documents[0, :2].tolist() == [7, 7]
    assert sorted(samples.margins[0, :2].tolist()) == [0.25, 0.75]
    assert samples.margins[2, 0] == -0.5


def test_the_pool_knows_what_is_active():
    windows = cut_windows(text(), 1, LENGTH)
    active = torch.rand(len(windows.tokens), 6) < 0.5
    pool = WindowPool(6, LENGTH)
    pool.add(windows, active)
    there = pool.there[0]
    assert there.sum() == len(active)
    order = pool.tokens[0, there, 0].argsort()
    assert torch.equal(pool.tokens[0, there][order], windows.tokens)
    assert torch.equal(pool.active[0, there][order], active)


def test_a_margin_is_what_would_have_to_be_lost():
    coder = BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K))
    inputs = torch.randn(50, WIDTH)
    codes, margins = codes_and_margins(coder, inputs, DRAWN)
    assert torch.equal(codes, coder.encode(inputs)[:, DRAWN])
    assert codes.sum() > 0
    _, pre = coder.codes_and_pre_activations(inputs, noise=False)
    runner_up = pre.topk(K + 1).values[:, K:]
    firing = codes != 0
    torch.testing.assert_close(margins[firing], (pre[:, DRAWN] - runner_up)[firing])
    assert (margins[firing] > 0).all()
    assert (margins[~firing] <= 0).all()


def test_of_thresholds_it_is_the_pre_activation():
    config = BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, selection="threshold")
    coder = BinarySAE(config)
    inputs = torch.randn(50, WIDTH)
    _, margins = codes_and_margins(coder, inputs, DRAWN)
    assert torch.equal(margins, coder.codes_and_pre_activations(inputs, noise=False)[1][:, DRAWN])


def test_of_values_it_is_the_value():
    coder = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K))
    codes, margins = codes_and_margins(coder, torch.randn(50, WIDTH), DRAWN)
    assert torch.equal(codes, margins)
    assert (codes != 0).any()
