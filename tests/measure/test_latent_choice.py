"""A coder can be made of some latents of another coder."""

from typing import Any

import pytest
import torch

from sae_binary_ext.measure.refit import with_latents
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)

WIDTH = 24
SIZES: dict[str, Any] = {"d_in": WIDTH, "d_sae": 10}
RULE: dict[str, Any] = {"selection": "threshold", "normalize_activations": "none"}
CODERS = {
    "autoencoder": lambda: BinarySAE(BinarySAEConfig(**SIZES, **RULE)),
    "transcoder": lambda: BinaryTranscoder(BinaryTranscoderConfig(**SIZES, **RULE, d_out=16)),
    "in training": lambda: BinaryEntropyTrainingSAE(
        BinaryEntropyTrainingSAEConfig(**SIZES, normalize_activations="expected_average_only_in")
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", CODERS)
def test_latents_are_as_they_were(kind: str):
    coder: Any = CODERS[kind]()
    for parameter in coder.parameters():
        parameter.normal_()
    coder.cfg.metadata.l0, coder.cfg.metadata.hook_name = 3.0, "blocks.1.hook_resid_pre"
    x = 3 * torch.randn(50, WIDTH)
    latents = torch.tensor([9, 1, 4, 1])
    chosen = with_latents(coder, latents)
    assert chosen.cfg.d_sae == 4
    codes = coder.encode(x)
    assert 0 < codes[:, latents].sum() < codes.sum()
    assert torch.equal(chosen.encode(x), codes[:, latents])
    # A latent that was chosen twice counts twice in the output.
    times = torch.bincount(latents, minlength=10)
    torch.testing.assert_close(chosen.decode(codes[:, latents]), coder.decode(codes * times))
    assert coder.cfg.d_sae == 10
    assert coder.cfg.metadata.l0 == 3.0
    assert chosen.cfg.metadata.l0 is None
    assert chosen.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"


def test_a_coder_of_no_latents_is_refused():
    coder = CODERS["in training"]()
    with pytest.raises(ValueError, match="at least one of the 10"):
        with_latents(coder, torch.tensor([], dtype=torch.int64))
