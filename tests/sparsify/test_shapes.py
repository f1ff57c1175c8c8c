"""A coder takes one token, or tokens in rows, as well as a batch of tokens."""

import pytest
import torch

from sae_binary_ext.coding import scatter_codes, unpack
from tests.sparsify.test_coder import (
    D_IN,
    KINDS,
    LATENTS,
    batch,
    coder_of,
    dense_codes,
    each_activation,
    each_kind,
)


@pytest.mark.parametrize("lead", [(), (1,), (5, 10), (2, 5, 5)], ids=str)
@each_kind
@each_activation
def test_a_token_alone_and_tokens_in_rows_keep_their_shape(
    activation: str, kind: str, lead: tuple[int, ...]
):
    coder = coder_of(activation, **KINDS[kind]).eval()
    rows, targets = (values[: torch.Size(lead).numel()] for values in batch())
    x, y = rows.view(*lead, D_IN), targets.view(*lead, D_IN)
    acts, index, pre = coder.encode(x)
    assert acts.shape == index.shape
    assert (*acts.shape[:-1], LATENTS) == pre.shape == (*lead, LATENTS)
    assert torch.equal(dense_codes(coder, x).view(-1, LATENTS), dense_codes(coder, rows))
    assert torch.equal(scatter_codes(*coder.encode_indices(x), LATENTS), dense_codes(coder, x))
    assert torch.equal(unpack(coder.encode_packed(x), LATENTS), dense_codes(coder, x))
    assert coder.decode(acts, index).shape == x.shape
    ours, theirs = coder(x, y), coder(rows, targets)
    assert torch.equal(ours.sae_out.view(-1, D_IN), theirs.sae_out)
    torch.testing.assert_close(ours.fvu, theirs.fvu, equal_nan=True)
    assert ours.fvu.isnan() == (rows.shape[0] == 1)
