from typing import Any

import pytest

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
)

D_IN, D_SAE, K = 16, 128, 8


@pytest.mark.parametrize(
    ("config", "fields", "learn"),
    [
        (BinaryTrainingSAEConfig, {}, "near"),
        (BinaryTrainingSAEConfig, {"selection": "groupmax"}, "selected"),
        (BinaryTrainingSAEConfig, {"surrogate_latents": "selected"}, "selected"),
        (BinaryEntropyTrainingSAEConfig, {}, "selected"),
        (BinaryEntropyTrainingSAEConfig, {"selection": "topk"}, "near"),
        (BinaryTranscoderTrainingSAEConfig, {}, "near"),
    ],
)
def test_near_latents_learn_in_topk_coders(config: Any, fields: dict[str, Any], learn: str):
    rule = config(d_in=D_IN, d_sae=D_SAE, k=K, **fields).code_rule()
    assert rule.surrogate_latents == learn


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": "best"}, "selection='best'"),
        ({"k": D_SAE + 1}, f"k={D_SAE + 1}.*{D_SAE} latents"),
        ({"k": 7, "selection": "groupmax"}, "k=7.*multiple of 7"),
        ({"surrogate": "tanh"}, "surrogate='tanh'"),
        ({"surrogate_temperature": 0.0}, "surrogate_temperature=0.0"),
        ({"normalize_activations": "sometimes"}, "normalize_activations"),
    ],
)
@pytest.mark.parametrize("config", [BinarySAEConfig, BinaryTrainingSAEConfig])
def test_wrong_fields_are_named(config: Any, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**{"d_in": D_IN, "d_sae": D_SAE, "k": K, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surrogate_latents": "few"}, "surrogate_latents='few'.*selected"),
        ({"surrogate_latents": "all", "selection": "groupmax"}, "'all' with selection='groupmax'"),
        ({"surrogate_latents": "near", "selection": "threshold"}, "'near' with selection='thres"),
        (
            {"encoder_trains_b_dec": True, "apply_b_dec_to_input": False},
            "encoder_trains_b_dec=True with apply_b_dec_to_input=False",
        ),
    ],
)
def test_wrong_training_fields_are_named(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, **fields)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_wrong_starting_rate_is_named(rate: float):
    with pytest.raises(ValueError, match="initial_firing_rate"):
        BinaryTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, initial_firing_rate=rate)
