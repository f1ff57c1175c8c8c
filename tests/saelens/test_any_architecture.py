"""The checks of SAELens' own tests, for each architecture that this package registers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor

from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    RefinedTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.saelens.register import ARCHITECTURES

D_IN, D_SAE = 12, 48
WIDTHS: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
CONFIGS: dict[str, TrainingSAEConfig] = {
    "binary": BinaryTrainingSAEConfig(**WIDTHS, k=6),
    "binary, threshold": BinaryTrainingSAEConfig(**WIDTHS, selection="threshold"),
    "binary_entropy": BinaryEntropyTrainingSAEConfig(**WIDTHS),
    "binary_refined": RefinedTrainingSAEConfig(**WIDTHS),
    "binary_transcoder": BinaryTranscoderTrainingSAEConfig(**WIDTHS, k=6, d_out=10),
    "binary_transcoder, skip": BinaryTranscoderTrainingSAEConfig(
        **WIDTHS, k=6, d_out=10, skip_connection=True
    ),
    "topk_transcoder": TopKTranscoderTrainingSAEConfig(**WIDTHS, k=6, d_out=10),
}
AUTOENCODERS = [name for name, config in CONFIGS.items() if not hasattr(config, "d_out")]
each = pytest.mark.parametrize("name", CONFIGS)
each_autoencoder = pytest.mark.parametrize("name", AUTOENCODERS)


def config_of(name: str) -> TrainingSAEConfig:
    """Returns a copy of a config, which a test may change."""
    return copy.deepcopy(CONFIGS[name])


def coder_of(name: str) -> SAE[Any]:
    """Returns an inference coder in which no parameter is zero."""
    coder = SAE.from_dict(config_of(name).get_inference_sae_cfg_dict())
    generator = torch.Generator().manual_seed(0)
    for parameter in coder.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return coder


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1))


def test_every_registered_architecture_has_a_case():
    registered = {training_config.architecture() for _, training_config, _, _ in ARCHITECTURES}
    assert {config.architecture() for config in CONFIGS.values()} == registered


@each
def test_configs_come_back_from_their_dicts(name: str):
    config = config_of(name)
    again = TrainingSAEConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert type(again) is type(config) is get_sae_training_class(config.architecture())[1]
    inference = config.get_inference_sae_cfg_dict()
    again = SAEConfig.from_dict(inference)
    assert again.to_dict() == inference
    assert type(again) is get_sae_class(again.architecture())[1]


@each
def test_classes_are_those_of_the_registry(name: str):
    config = config_of(name)
    training = TrainingSAE.from_dict(config.to_dict())
    assert type(training) is get_sae_training_class(config.architecture())[0]
    coder = coder_of(name)
    assert type(coder) is get_sae_class(coder.cfg.architecture())[0]


@each
def test_a_coder_and_its_metadata_survive_saving(name: str, tmp_path: Path):
    coder = coder_of(name)
    coder.cfg.metadata = SAEMetadata(model_name="model", hook_name="hook", remark="kept")
    coder.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.get_name() == f"sae_model_hook_{D_SAE}"
    assert loaded.cfg.metadata.remark == "kept"
    assert loaded.cfg.to_dict() == coder.cfg.to_dict()
    assert loaded.state_dict().keys() == coder.state_dict().keys()
    for key, value in coder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert torch.equal(loaded(inputs(5)), coder(inputs(5)))


@each
def test_a_moved_coder_says_so_in_its_config(name: str):
    coder = coder_of(name).to(torch.float64)
    assert coder.cfg.dtype == "float64"
    assert coder(inputs(5).double()).dtype == torch.float64
    coder.to("meta")
    assert coder.cfg.device == "meta"
    assert coder.device == coder.W_enc.device == torch.device("meta")


@each
def test_every_hook_point_is_passed(name: str):
    coder = coder_of(name)
    out, cache = coder.run_with_cache(inputs(3, 4))
    assert {"hook_sae_input", "hook_sae_acts_post", "hook_sae_recons"} <= cache.keys()
    assert torch.equal(cache["hook_sae_acts_post"], coder.encode(inputs(3, 4)))
    # As in SAELens' skip transcoders, hook_sae_recons sees the output without the skip connection.
    weight = getattr(coder, "W_skip", None)
    skip = 0 if weight is None else inputs(3, 4) @ weight.T
    torch.testing.assert_close(cache["hook_sae_recons"] + skip, out)


@each
@pytest.mark.parametrize("lead", [(0,), (3, 0)], ids=str)
def test_no_tokens_have_no_codes_and_no_outputs(name: str, lead: tuple[int, ...]):
    for coder in (coder_of(name), TrainingSAE.from_dict(config_of(name).to_dict())):
        x = inputs(*lead)
        assert coder.encode(x).shape == (*lead, D_SAE)
        assert coder(x).shape == (*lead, getattr(coder.cfg, "d_out", D_IN))
        if hasattr(coder, "encode_packed"):
            assert coder.encode_packed(x).shape == (*lead, D_SAE // 8)
            codes, index = coder.encode_indices(x)
            assert codes.shape == index.shape == (*lead, codes.shape[-1])


@each
@torch.no_grad()
def test_a_folded_scale_changes_the_unit_alone(name: str):
    coder = coder_of(name)
    folded = copy.deepcopy(coder)
    folded.fold_activation_norm_scaling_factor(3.0)
    assert folded.cfg.normalize_activations == "none"
    x = inputs(50)
    codes, codes_of_raw = coder.encode(x), folded.encode(x / 3)
    assert codes.any()
    torch.testing.assert_close(codes_of_raw, codes)
    torch.testing.assert_close(3 * folded(x / 3), coder(x))


@each_autoencoder
def test_an_error_term_stays_that_of_the_clean_pass(name: str):
    coder = coder_of(name)
    coder.use_error_term = True
    x = inputs(20)
    clean, clean_cache = coder.run_with_cache(x)
    torch.testing.assert_close(clean, x)

    def all_on(codes: Tensor, hook: Any) -> Tensor:
        codes[:] = 1.0
        return codes

    with coder.hooks(fwd_hooks=[("hook_sae_acts_post", all_on)]):
        changed, changed_cache = coder.run_with_cache(x)
    assert not torch.allclose(changed, clean, rtol=0.01)
    assert (changed_cache["hook_sae_acts_post"] == 1).all()
    torch.testing.assert_close(changed_cache["hook_sae_error"], clean_cache["hook_sae_error"])


@each_autoencoder
def test_heads_are_taken_as_one_activation(name: str):
    config = config_of(name)
    config.reshape_activations = "hook_z"
    config.metadata.hook_name = "blocks.0.attn.hook_z"
    coder = SAE.from_dict(config.get_inference_sae_cfg_dict())
    coder.load_state_dict(coder_of(name).state_dict())
    heads = inputs(3, 4).unflatten(-1, (2, D_IN // 2))
    assert coder(heads).shape == heads.shape
    torch.testing.assert_close(coder(heads).flatten(-2), coder_of(name)(inputs(3, 4)))


@each
def test_a_training_step_s_loss_is_the_sum_of_its_losses(name: str):
    coder = TrainingSAE.from_dict(config_of(name).to_dict())
    width = D_IN + getattr(coder.cfg, "d_out", 0)
    rows = torch.randn(64, width, generator=torch.Generator().manual_seed(2))
    dead = torch.arange(D_SAE) % 3 == 0
    coefficients = {key: value.value for key, value in coder.get_coefficients().items()}
    out = coder.training_forward_pass(TrainStepInput(rows, coefficients, dead, 0, False))
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    assert out.feature_acts.shape == out.hidden_pre.shape == (64, D_SAE)
    out.loss.backward()
    for key, parameter in coder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    with torch.no_grad():
        assert torch.equal(
            coder.encode(rows[:, :D_IN]), coder.encode_with_hidden_pre(rows[:, :D_IN])[0]
        )
