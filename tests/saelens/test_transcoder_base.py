import copy
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    TopKTranscoderConfig,
    TopKTranscoderTrainingSAEConfig,
)
from tests.saelens.test_transcoder import (
    BINARY,
    CONFIGS,
    D_IN,
    D_OUT,
    D_SAE,
    WIDTHS,
    each_config,
    fresh,
    step_input,
)


@pytest.mark.parametrize("training", [False, True])
def test_the_skip_connection_is_part_of_decode(training: bool):
    config = BinaryTranscoderConfig(**WIDTHS, skip_connection=True)
    coder: Any = fresh(CONFIGS["topk-skip"]) if training else BinaryTranscoder(config)
    torch.nn.init.normal_(coder.W_skip)
    x, other = torch.randn(2, 30, D_IN)
    codes, others = coder.encode(x), coder.encode(other)
    assert not torch.allclose(codes @ coder.W_dec + coder.b_dec, coder(x))
    torch.testing.assert_close(coder.decode(codes), coder(x))
    torch.testing.assert_close(coder.decode(others), coder(other))
    with pytest.raises(ValueError, match="decode_with_input"):
        coder.decode(codes.clone())
    torch.testing.assert_close(
        coder.decode_with_input(torch.zeros_like(codes), x), x @ coder.W_skip.T + coder.b_dec
    )
    with torch.no_grad():
        codes.zero_()
    torch.testing.assert_close(coder.decode(codes), x @ coder.W_skip.T + coder.b_dec)
    coder.hook_sae_acts_post.add_hook(lambda codes, hook: torch.zeros_like(codes))
    torch.testing.assert_close(coder(x), x @ coder.W_skip.T + coder.b_dec)
    assert torch.equal(copy.deepcopy(coder)(x), coder(x))


def test_inputs_of_codes_are_not_kept_alive():
    coder = BinaryTranscoder(BinaryTranscoderConfig(**WIDTHS, skip_connection=True))
    for _ in range(3):
        coder(torch.randn(30, D_IN))
    assert len(coder._input_of_codes) == 0


@each_config
def test_configs_survive_a_round_trip(config: Any):
    again = type(config).from_dict(config.to_dict())
    assert again == config
    sae = fresh(config)
    inference = sae.cfg.get_inference_config_class().from_dict(sae.cfg.get_inference_sae_cfg_dict())
    coder = SAE.from_dict(inference.to_dict())
    assert type(type(coder).from_dict(inference.to_dict())) is type(coder)
    assert (coder.cfg.d_out, coder.cfg.skip_connection) == (D_OUT, config.skip_connection)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_out": 0}, "d_out=0"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input=True"),
        ({"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
        ({"normalize_activations": "sometimes"}, "normalize_activations"),
    ],
)
@pytest.mark.parametrize(
    "config",
    [BinaryTranscoderConfig, BINARY, TopKTranscoderConfig, TopKTranscoderTrainingSAEConfig],
)
def test_wrong_fields_are_named(config: Any, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**{**WIDTHS, **fields})


@pytest.mark.parametrize(
    "field", ["aux_loss_coefficient", "entropy_coefficient", "covariance_coefficient"]
)
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_wrong_coefficients_are_named(field: str, value: float):
    with pytest.raises(ValueError, match=field):
        BINARY(**WIDTHS, **{field: value})


def test_rescaling_by_the_norm_of_nothing_is_refused():
    with pytest.raises(ValueError, match="decoder_init_norm=None"):
        TopKTranscoderTrainingSAEConfig(**WIDTHS, rescale_acts_by_decoder_norm=True)


def test_d_out_is_d_in_where_it_is_not_given():
    assert BINARY(d_in=D_IN, d_sae=D_SAE).d_out == D_IN


def test_an_error_term_is_refused():
    with pytest.raises(ValueError, match="add_sae"):
        BinaryTranscoder(BinaryTranscoderConfig(**WIDTHS), use_error_term=True)


def test_single_activations_are_refused():
    sae = fresh(CONFIGS["topk"])
    with pytest.raises(ValueError, match="TranscoderTrainingRunner"):
        sae.training_forward_pass(step_input(torch.randn(20, D_IN)))


def test_folding_decoder_norms_is_refused():
    with pytest.raises(NotImplementedError, match="decoder row"):
        BinaryTranscoder(BinaryTranscoderConfig(**WIDTHS)).fold_W_dec_norm()
