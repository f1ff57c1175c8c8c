"""SAELens' checkpoints that were trained on scaled activations load as coders of raw ones."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.matching_pursuit_sae import (
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
)
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import save_file
from torch import Tensor

from sae_binary_ext.checkpoints import (
    CheckpointError,
    convert,
    describe,
    disk_converter,
    load_coder,
    push,
)
from sae_binary_ext.saelens import BinaryTrainingSAE, BinaryTrainingSAEConfig
from sae_binary_ext.saelens.pairs import PairScaler
from tests.checkpoints.coders import spread
from tests.hub_server import Hub

D, D_OUT, LATENTS, K = 8, 5, 32, 4
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"
HOOK = {"hook_name": "blocks.3.hook_mlp_out", "model_name": "HuggingFaceTB/SmolLM2-135M"}
# For each coder: its training architecture, its fields, and whether sparsify can store it.
CODERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "binary": ("binary", {"k": K}, True),
    "binary uncentred": (
        "binary", {"selection": "threshold", "apply_b_dec_to_input": False}, True
    ),
    "binary_entropy": ("binary_entropy", {"k": K}, True),
    "binary_transcoder": ("binary_transcoder", {"k": K, "d_out": D_OUT}, False),
    "binary skip transcoder": ("binary_transcoder", {"k": K, "skip_connection": True}, True),
    "topk_transcoder": (
        "topk_transcoder", {"k": K, "d_out": D_OUT, "skip_connection": True}, False
    ),
    "topk": ("topk", {"k": K, "rescale_acts_by_decoder_norm": False}, True),
    "topk rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}, True),
    "standard": ("standard", {}, False),
    "gated": ("gated", {"apply_b_dec_to_input": False}, False),
    "jumprelu": ("jumprelu", {}, False),
}  # fmt: skip
both_modes = pytest.mark.parametrize("mode", [SCALED, WHITENED])


def activations(width: int = D, tokens: int = 400) -> Tensor:
    return (torch.randn(tokens, 2 * width) @ torch.randn(2 * width, width)) * 7 + torch.randn(width)


def estimated(scaler: ActivationScaler, mode: str, x: Tensor) -> ActivationScaler:
    batches = itertools.cycle(x.split(50))
    estimate = scaler.estimate_scaling_factor if mode == SCALED else scaler.estimate_whitening
    estimate(D, batches, 8)
    return scaler


def checkpoint(folder: Path, name: str, mode: str) -> tuple[Any, ActivationScaler, Tensor]:
    """Write a checkpoint as SAELens' trainer does. Returns coder, scaler and raw inputs."""
    architecture, fields, _ = CODERS[name]
    coder_class, config_class = get_sae_training_class(architecture)
    config = config_class(d_in=D, d_sae=LATENTS, normalize_activations=mode, **fields)  # pyright: ignore
    for key, value in HOOK.items():
        config.metadata[key] = value
    coder = spread(coder_class(config))
    x = activations()
    scaler = ActivationScaler()
    if "transcoder" in architecture:
        config.metadata["hook_name"] = "blocks.3.mlp.hook_in"
        config.metadata["hook_name_out"] = HOOK["hook_name"]
        scaler = PairScaler(D)
        x = torch.cat([x, activations(fields.get("d_out", D)) / 50], dim=1)
    estimated(scaler, mode, x)
    coder.save_model(folder)
    scaler.save(str(folder / "activation_scaler.json"))
    return coder, scaler, x[:, :D]


@torch.no_grad()
def in_training(coder: Any, scaler: ActivationScaler, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and outputs for raw inputs in training, which scales, encodes and scales back."""
    source, target = (
        (scaler.input, scaler.target) if isinstance(scaler, PairScaler) else (scaler, scaler)
    )
    scaled = source.scale(x)
    codes = coder.encode(scaled)
    output = coder.decode(codes)
    if getattr(coder, "W_skip", None) is not None:
        output = codes @ coder.W_dec + coder.b_dec + scaled @ coder.W_skip.T
    if getattr(coder.cfg, "rescale_acts_by_decoder_norm", False) and scaler.scaling_factor:
        # These codes are in units of decoder row norms, which SAELens divides by the factor.
        codes = codes / scaler.scaling_factor
    return codes, target.unscale(output)


def assert_raw(coder: Any, expected: tuple[Tensor, Tensor], x: Tensor) -> None:
    """Assert that the coder gives the expected codes and outputs for raw inputs x."""
    codes, output = expected
    with torch.no_grad():
        if hasattr(coder, "W_enc"):
            found, out = coder.encode(x), coder(x)
        else:
            encoded = coder.encode(x)
            found = torch.zeros_like(codes)
            found = found.scatter_add(-1, encoded.top_indices, encoded.top_acts.to(codes.dtype))
            out = coder(x, y=x).sae_out
    # Rounding may decide whether a latent fires if its margin is near zero.
    same = ((found != 0) == (codes != 0)).all(-1)
    assert same.float().mean() > 0.97
    torch.testing.assert_close(found[same], codes[same], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out[same], output[same], rtol=1e-3, atol=2e-2)


@both_modes
@pytest.mark.parametrize("name", CODERS)
def test_the_scale_beside_a_checkpoint_is_folded_in(name: str, mode: str, tmp_path: Path):
    coder, scaler, x = checkpoint(tmp_path / "run", name, mode)
    expected = in_training(coder, scaler, x)
    loaded = load_coder(tmp_path / "run")
    assert loaded.cfg.normalize_activations == "none"
    assert_raw(loaded, expected, x)
    words = dict(describe(tmp_path / "run")[0].lines())["normalization"]
    assert words.endswith("folded on load")
    assert ("whitened" if mode == WHITENED else "scaled by") in words
    # A converted checkpoint has no scale left to fold.
    convert(tmp_path / "run", tmp_path / "saelens")
    assert_raw(load_coder(tmp_path / "saelens"), expected, x)
    assert "normalization" not in dict(describe(tmp_path / "saelens")[0].lines())
    converted = type(loaded).load_from_disk(tmp_path / "run", converter=disk_converter)
    assert_raw(converted, expected, x)
    if CODERS[name][2]:
        assert_raw(load_coder(tmp_path / "run", host="sparsify"), expected, x)


def test_pairs_keep_a_factor_each(tmp_path: Path):
    coder, scaler, _ = checkpoint(tmp_path, "binary skip transcoder", SCALED)
    factors: Any = scaler.scaling_factor
    loaded = load_coder(tmp_path)
    assert factors.target > 2 * factors.input
    torch.testing.assert_close(loaded.W_enc, coder.W_enc * factors.input)
    torch.testing.assert_close(loaded.W_dec, coder.W_dec / factors.target)
    torch.testing.assert_close(loaded.b_dec, coder.b_dec / factors.target)
    torch.testing.assert_close(loaded.W_skip, coder.W_skip * (factors.input / factors.target))
    torch.testing.assert_close(loaded.b_enc, coder.b_enc)


def test_a_run_s_checkpoint_explains_what_its_final_coder_does(tmp_path: Path):
    torch.manual_seed(0)
    x = (torch.rand(2000, 24) < 0.08).float() @ torch.randn(24, 16) * 20
    config = SAETrainerConfig(
        total_training_samples=30_000,
        train_batch_size_samples=200,
        lr=3e-3,
        lr_end=3e-4,
        n_batches_for_norm_estimate=5,
        n_checkpoints=1,
        checkpoint_path=str(tmp_path),
        save_final_checkpoint=True,
        logger=LoggingConfig(log_to_wandb=False),
    )
    coder = BinaryTrainingSAE(
        BinaryTrainingSAEConfig(d_in=16, d_sae=64, k=6, normalize_activations=SCALED)
    )
    final = SAETrainer(config, coder, itertools.cycle(x.split(200))).fit()

    def fvu(coder: Any) -> float:
        return ((coder(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()

    last = next(tmp_path.glob("final_*"))
    (halfway,) = set(tmp_path.iterdir()) - {last}
    assert fvu(load_coder(halfway)) < fvu(final) + 0.15 < 0.6
    # The last checkpoint is already folded, so loading does not change its weights.
    assert torch.equal(load_coder(last).W_enc, final.W_enc)
    assert fvu(load_coder(last)) == fvu(final)


def test_a_factor_that_older_versions_kept_in_the_store_s_state(tmp_path: Path):
    coder, scaler, x = checkpoint(tmp_path, "standard", SCALED)
    factor = scaler.scaling_factor
    assert factor is not None
    (tmp_path / "activation_scaler.json").unlink()
    config = {
        "architecture": "standard", "d_in": D, "d_sae": LATENTS, "dtype": "float32",
        "normalize_activations": SCALED, "sae_lens_version": "4.0.0", "device": "cpu",
        "finetuning_scaling_factor": False, **HOOK,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    unscaled = load_coder(tmp_path)  # without the factor, as in SAELens
    assert torch.equal(unscaled.W_enc, coder.W_enc)
    assert "activations are not scaled" in dict(describe(tmp_path)[0].lines())["normalization"]
    state = {"estimated_norm_scaling_factor": torch.tensor(factor), "n": torch.zeros(1)}
    save_file(state, tmp_path / "activations_store_state.safetensors")
    assert_raw(load_coder(tmp_path), in_training(coder, scaler, x), x)


@pytest.mark.parametrize("factor", [0, -1.0, "2", [1.0], [1.0, 2.0], True, 10**400, {}])
@pytest.mark.parametrize("name", ["binary", "standard"])
def test_a_factor_that_is_none_is_refused(factor: Any, name: str, tmp_path: Path):
    checkpoint(tmp_path, name, SCALED)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    for call in (load_coder, describe):
        with pytest.raises(CheckpointError, match=r"scaling_factor=.* where a positive number"):
            call(tmp_path)


def nan(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


def wider(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor])


@pytest.mark.parametrize(("change", "message"), [(nan, "not finite"), (wider, "asks for")])
def test_a_damaged_whitening_is_refused(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
):
    _, scaler, _ = checkpoint(tmp_path, "binary", WHITENED)
    assert scaler.whitening is not None
    tensors = {
        "mean": scaler.whitening.mean,
        "matrix": change(scaler.whitening.matrix),
        "inverse_matrix": scaler.whitening.inverse_matrix,
    }
    save_file(tensors, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(CheckpointError, match=rf"activation_whitening.*{message}"):
        load_coder(tmp_path)


def test_a_scale_that_cannot_be_folded_is_named(tmp_path: Path):
    scaler = estimated(ActivationScaler(), WHITENED, activations())
    coder = MatchingPursuitTrainingSAE(MatchingPursuitTrainingSAEConfig(d_in=D, d_sae=LATENTS))
    coder.cfg.normalize_activations = WHITENED
    coder.save_model(tmp_path)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    with pytest.raises(
        CheckpointError, match="cannot fold the scale into architecture='matching_pursuit'"
    ) as no:
        load_coder(tmp_path)
    assert "SAE.load_from_disk, and scale the activations yourself" in str(no.value)
    scaled = scaler.scale(activations())
    assert torch.equal(SAE.load_from_disk(tmp_path)(scaled), coder(scaled))


@both_modes
@pytest.mark.parametrize("name", ["binary", "binary skip transcoder", "standard"])
def test_published_and_downloaded(name: str, mode: str, hub: Hub, tmp_path: Path):
    coder, scaler, x = checkpoint(tmp_path / "run", name, mode)
    expected = in_training(coder, scaler, x)
    # A user may upload a run's folder unchanged.
    files = {f"a/{file.name}": file.read_bytes() for file in (tmp_path / "run").iterdir()}
    hub.add("me/raw", files)
    assert_raw(load_coder("me/raw", "a"), expected, x)
    # push folds the scale in, for loaders that do not know it.
    push(tmp_path / "run", "me/pushed")
    uploaded = hub.repositories["me/pushed"].files
    assert not {one for one in uploaded if "activation" in one}
    assert json.loads(uploaded["run/cfg.json"])["normalize_activations"] == "none"
    assert_raw(load_coder("me/pushed", "run"), expected, x)
