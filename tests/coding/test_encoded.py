import torch

from sae_binary_ext.coding.encoded import encode_batch
from sae_binary_ext.coding.selection import CodeRule
from tests import reference
from tests.cases import each_rule

TOKENS, D_IN, LATENTS = 40, 7, 108  # 6 groups; enough latents for the index form


@each_rule
def test_every_form_gives_the_reference_codes_reconstruction_and_firings(rule: CodeRule):
    x = torch.randn(TOKENS, D_IN, dtype=torch.float64)
    weight = torch.randn(D_IN, LATENTS, dtype=torch.float64)
    bias, log_threshold = torch.randn(2, LATENTS, dtype=torch.float64)
    decoder = torch.randn(LATENTS, D_IN, dtype=torch.float64)
    origin = torch.randn(D_IN, dtype=torch.float64)

    encoded = encode_batch(x, weight, bias, log_threshold, origin, rule)
    expected = reference.codes(x @ weight + bias, log_threshold, rule).round()

    assert (encoded.index is not None) == (rule.selection in ("topk", "groupmax"))
    assert torch.equal(encoded.dense(), expected)
    torch.testing.assert_close(encoded.decode(decoder, origin), expected @ decoder + origin)
    counts = torch.bincount(encoded.fired_latents(), minlength=LATENTS)
    assert torch.equal(counts.double(), expected.sum(0))
    torch.testing.assert_close(encoded.firing_rates(None).double(), expected.mean(0))
