"""Thresholds fitted in place of a selection, on codes that are known by construction."""

import pytest
import torch
from torch import Tensor

from sae_binary_ext.measure.thresholds import fit_thresholds
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig

LATENTS, D, TOKENS = 24, 32, 2000


def coder_and_codes(k: int) -> tuple[BinarySAE, Tensor, Tensor]:
    """A coder with orthogonal decoder rows, tokens with known codes, and their activations.

    Latents have a margin of about 1 if their code is 1, and of about -1 if it is 0. But rows are
    twice as long in half of the latents, so no single threshold fits all of them.
    """
    coder = BinarySAE(BinarySAEConfig(d_in=D, d_sae=LATENTS, k=k, apply_b_dec_to_input=False))
    rows = torch.linalg.qr(torch.randn(D, D))[0][:LATENTS]
    scale = torch.ones(LATENTS, 1)
    scale[::2] = 3
    coder.W_dec.data = rows * scale
    coder.W_enc.data = rows.T.contiguous()
    coder.b_enc.data.zero_()
    coder.log_threshold.data.fill_(-torch.inf)
    codes = (torch.rand(TOKENS, LATENTS) < k / LATENTS).float()  # the coder fires k a token too
    x = codes @ coder.W_dec.data + 0.2 * torch.randn(TOKENS, D)
    return coder, codes, x


def test_each_latent_gets_the_threshold_that_tells_its_codes():
    coder, codes, x = coder_and_codes(k=5)
    wrong = (coder.encode(x) != codes).float().mean()
    fitted = fit_thresholds(coder, [(part, part) for part in x.split(300)])
    assert fitted.kind == "each latent's own threshold"
    found = (x @ coder.W_enc > fitted.raised).float()
    assert (found != codes).float().mean() < 0.006 < 0.02 < wrong
    torch.testing.assert_close(found @ fitted.weight + fitted.bias, x, rtol=0, atol=1.1)


def test_one_threshold_is_taken_if_own_thresholds_only_fit_noise():
    coder, _, x = coder_and_codes(k=5)
    coder.W_enc.data = torch.randn(D, LATENTS)
    few = x[:30]
    assert fit_thresholds(coder, [(few, few)]).kind == "one threshold"


@pytest.mark.parametrize("most", [LATENTS * 500, 2**28], ids=["bounded", "all"])
def test_memory_is_bounded(most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_binary_ext.measure.thresholds.MARGINS_AT_ONCE", most)
    coder, codes, x = coder_and_codes(k=5)
    x[500:] += 100  # tokens that would spoil thresholds, if they were read
    found = (x @ coder.W_enc > fit_thresholds(coder, [(x, x)]).raised).float()
    assert ((found != codes)[:500].float().mean() < 0.01) == (most < 2**28)
