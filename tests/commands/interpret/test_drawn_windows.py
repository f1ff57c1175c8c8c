import torch
from sae_lens import TopKSAE, TopKSAEConfig

from sae_binary_ext.commands.interpret.drawn_windows import codes_and_margins
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

WIDTH, LATENTS, K = 8, 30, 4
DRAWN = torch.tensor([0, 3, 17, 29])


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
