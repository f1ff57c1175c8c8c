"""The first paper's options in training: a tied decoder, and nested groups of latents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import SparseCoder

from sae_binary_ext.coding import reference
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.sparsify.test_coder import (
    D_IN,
    LATENTS,
    K,
    assert_same,
    batch,
    coder_of,
    each_activation,
    gradients,
    reference_output,
)
from tests.sparsify.trainers import coder_in, trainer_on

KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "tied": {"tied_decoder": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
}


@pytest.mark.parametrize("groups", [1, 5, LATENTS])
@pytest.mark.parametrize("kind", KINDS)
@each_activation
def test_the_matryoshka_loss_and_every_gradient_equal_the_reference(
    activation: str, kind: str, groups: int
):
    coder = coder_of(
        activation, torch.float64, matryoshka=True, matryoshka_groups=groups,
        ste_latents="selected", **KINDS[kind],
    )  # fmt: skip
    coder.eval()
    x, y = batch(torch.float64)
    target = y if coder.cfg.transcode else x
    output = coder(x, target)
    codes, whole = reference_output(coder, x)
    skip = 0.0 if coder.W_skip is None else x @ coder.W_skip.T
    prefixes = codes, coder.decoder_weight(), coder.b_dec
    # The skip connection adds to each reconstruction. The variance is the whole target's.
    sums = reference.matryoshka_fvu(*prefixes, target - skip, groups)
    shifted = target - skip
    variances = [(each - each.mean(0)).square().sum() for each in (shifted, target)]
    expected = sums * variances[0] / variances[1]
    torch.testing.assert_close(output.fvu, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(output.sae_out, whole, rtol=1e-10, atol=1e-12)
    assert_same(gradients(coder, output.fvu), gradients(coder, expected))
    if groups == 1:
        assert (
            output.fvu
            == coder_of(activation, torch.float64, ste_latents="selected", **KINDS[kind])
            .eval()(x, target)
            .fvu
        )


@pytest.mark.parametrize("activation", ["topk_binary", "binary"])
def test_a_trained_coder_of_both_options_loads_as_it_was_saved(activation: str, tmp_path: Path):
    config = BinarySparseCoderConfig(
        activation=activation, num_latents=32, k=4, tied_decoder=True, matryoshka=True,
        matryoshka_groups=3,
    )  # fmt: skip
    torch.manual_seed(0)
    activations, rows = torch.randn(40, D_IN), torch.arange(400).remainder(40).view(20, 20)
    settings = {"batch_size": 2, "lr": 1e-2, "optimizer": "adam"}
    trainer = trainer_on(activations, rows, config, tmp_path, **settings)
    start = coder_in(trainer).encoder.weight.detach().clone()
    trainer.fit()
    coder = coder_in(trainer)
    assert coder.W_dec is coder.encoder.weight
    assert not torch.equal(coder.encoder.weight, start)
    loaded = SparseCoder.load_from_disk(tmp_path / "run" / "middle")
    assert isinstance(loaded, BinarySparseCoder)
    assert loaded.cfg == coder.cfg
    assert loaded.W_dec is loaded.encoder.weight
    coder.eval()
    loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(activations).sae_out, coder(activations).sae_out)
    for name, tensor in coder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
def test_the_matryoshka_loss_needs_the_fvu(loss_fn: str, tmp_path: Path):
    config = BinarySparseCoderConfig(num_latents=32, k=4, matryoshka=True)
    rows = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"matryoshka=True with loss_fn='{loss_fn}'.*give fvu"):
        trainer_on(torch.randn(40, D_IN), rows, config, tmp_path, loss_fn=loss_fn)


def test_more_groups_than_latents_are_refused():
    config = BinarySparseCoderConfig(num_latents=4, k=K, matryoshka=True)
    with pytest.raises(ValueError, match=r"matryoshka_groups=5 with 4 latents.*at most 4"):
        SparseCoder(D_IN, config)


def test_weights_of_another_decoder_are_refused():
    tied, untied = coder_of(tied_decoder=True), coder_of()
    with pytest.raises(ValueError, match=r"tied_decoder=True: .*Leave tied_decoder out"):
        tied.load_state_dict(untied.state_dict())
