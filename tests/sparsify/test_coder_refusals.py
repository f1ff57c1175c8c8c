"""Settings that sparsify allows but that binary codes rule out are refused."""

from typing import Any

import pytest
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig

import sae_binary_ext  # noqa: F401  # registers
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

D_IN, LATENTS = 8, 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": LATENTS + 1}, f"k={LATENTS + 1}.*{LATENTS} latents"),
        ({"k": 3, "activation": "groupmax_binary"}, "k=3.*not a multiple"),
        ({"k": 3, "activation": "gumbel_binary"}, "k=3.*not a multiple"),
    ],
)
def test_a_k_that_does_not_suit_the_latents_is_named(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SparseCoder(D_IN, BinarySparseCoderConfig(num_latents=LATENTS, **fields))


def test_a_stock_activation_is_refused_by_the_binary_class():
    for config in (SparseCoderConfig(), BinarySparseCoderConfig(activation="topk")):
        with pytest.raises(ValueError, match="activation='topk'"):
            BinarySparseCoder(D_IN, config)
        assert type(SparseCoder(D_IN, config)) is SparseCoder


@pytest.mark.parametrize("activation", ["topk_binary", "binary"])
def test_a_binary_activation_in_sparsify_s_own_config_is_refused_at_once(activation: str):
    config = SparseCoderConfig(activation=activation)
    message = f"activation='{activation}' in a SparseCoderConfig.*BinarySparseCoderConfig"
    for build in (lambda: SparseCoder(D_IN, config), lambda: SparseCoder(D_IN, cfg=config)):
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(ValueError, match=message):
        TrainConfig(config)


def test_unit_decoder_rows_are_refused():
    with pytest.raises(ValueError, match="lives in its decoder row"):
        BinarySparseCoder(D_IN, BinarySparseCoderConfig()).set_decoder_norm_to_unit_norm()
