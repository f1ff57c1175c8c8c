"""Coders in the files of each version of SAELens compute what plain formulas give."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.registry import get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import save_file
from torch import Tensor

from sae_binary_ext.checkpoints import (
    CheckpointError,
    coder_to_sparsify,
    convert,
    describe,
    load_coder,
    push,
)
from tests.checkpoints.coders import spread

D, LATENTS, K = 8, 24, 4
Formula = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]


def top(pre: Tensor, k: int = K) -> Tensor:
    """Keep the k largest values of each row if they are positive, and set all others to 0."""
    values, places = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, places, values.relu())


def relu(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    codes = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    return codes, codes @ t["W_dec"] + t["b_dec"]


def topk(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    codes = top((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    return codes, codes @ t["W_dec"] + t["b_dec"]


def rescaled_topk(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    norms = t["W_dec"].norm(dim=-1)
    codes = top(((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms)
    return codes, (codes / norms) @ t["W_dec"] + t["b_dec"]


def normalised_topk(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    deviation = (x - mean).std(-1, keepdim=True)
    codes, output = topk(t, (x - mean) / (deviation + 1e-5))
    return codes, output * deviation + mean


def signed_topk(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    places = pre.abs().topk(K, dim=-1).indices
    codes = torch.zeros_like(pre).scatter(-1, places, pre.gather(-1, places))
    return codes, codes @ t["W_dec"] + t["b_dec"]


def jumprelu(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    codes = pre.relu() * (pre > t["threshold"])
    return codes, codes @ t["W_dec"] + t["b_dec"]


def gated(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = (x - t["b_dec"]) @ t["W_enc"]
    codes = (pre + t["b_gate"] > 0) * (pre * t["r_mag"].exp() + t["b_mag"]).relu()
    return codes, codes @ t["W_dec"] + t["b_dec"]


def transcoder(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = x @ t["W_enc"] + t["b_enc"]
    codes = pre.relu() * (pre > t.get("threshold", torch.zeros(())))
    output = codes @ t["W_dec"] + t["b_dec"]
    return codes, output + (x @ t["W_skip"].T if "W_skip" in t else 0)


def pursuit(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    residual, codes = x - t["b_dec"], torch.zeros(len(x), LATENTS)
    for _ in range(2):
        correlation = (residual @ t["W_dec"].T).relu()
        value, place = correlation.max(-1)
        codes[torch.arange(len(x)), place] += value
        residual = residual - value[:, None] * t["W_dec"][place]
    return codes, codes @ t["W_dec"] + t["b_dec"]


# Fields that SAELens wrote at the top level before version 6, and under metadata since then.
PLACE = {
    "model_name": "gpt2-small",
    "hook_name": "blocks.8.hook_resid_pre",
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "Skylion007/openwebtext",
}
OLD: dict[str, Any] = {
    "d_in": D, "d_sae": LATENTS, "dtype": "torch.float32", "device": "cuda",
    "hook_layer": 8, "hook_head_index": None, "finetuning_scaling_factor": False,
    "dataset_trust_remote_code": True, **PLACE,
}  # fmt: skip
NEW: dict[str, Any] = {
    "d_in": D, "d_sae": LATENTS, "dtype": "float32", "device": "cuda",
    "normalize_activations": "none", "reshape_activations": "none", "apply_b_dec_to_input": True,
}  # fmt: skip
TRANSCODES = {"apply_b_dec_to_input": False, "d_out": D}
BIASES = ("b_enc",)


@dataclass(frozen=True)
class Published:
    """A layout of coder files that SAELens published.

    Attributes:
        config: cfg.json, for version 6 without the metadata, which `publish` adds.
        formula: computes the coder's codes and output.
        sparsify: None if sparsify can store the coder, or else words of the refusal.
        latents: names of the tensors that have one number for each latent.
        old: whether SAELens before version 6 wrote the files.
        dtype: dtype of the tensors in the file.
    """

    config: dict[str, Any]
    formula: Formula
    sparsify: str | None = "architecture="
    latents: tuple[str, ...] = BIASES
    old: bool = False
    dtype: torch.dtype = torch.float32
    further: dict[str, Any] = field(default_factory=dict[str, Any])

    def tensors(self) -> dict[str, Tensor]:
        shapes = {"W_enc": (D, LATENTS), "W_dec": (LATENTS, D), "b_dec": (D,)}
        shapes |= dict.fromkeys(self.latents, (LATENTS,))
        if "skip" in str(self.config.get("architecture")):
            shapes["W_skip"] = (D, D)
        if self.config.get("architecture") == "matching_pursuit":
            shapes = {name: shapes[name] for name in ("W_dec", "b_dec")}
        made = {name: torch.randn(shape) / 2 for name, shape in shapes.items()}
        if self.config.get("architecture") == "matching_pursuit":
            made["W_dec"] /= made["W_dec"].norm(dim=-1, keepdim=True)
        return {
            name: (tensor.abs() if name == "threshold" else tensor).to(self.dtype)
            for name, tensor in made.items()
        }

    def publish(self, folder: Path) -> dict[str, Tensor]:
        """Write the coder's files. Returns the coder's tensors as float32."""
        folder.mkdir(parents=True)
        tensors = self.tensors()
        config = dict(self.config)
        if not self.old:
            hooks = {"hook_name_out": "blocks.8.hook_mlp_out"} if "d_out" in config else {}
            config["metadata"] = {"sae_lens_version": "6.18.0", **PLACE, **hooks}
        (folder / "cfg.json").write_text(json.dumps(config))
        save_file({**tensors, **self.further}, folder / "sae_weights.safetensors")
        return {name: tensor.float() for name, tensor in tensors.items()}


CASES = {
    "2024-03, hook_point": Published(
        {**{key: value for key, value in OLD.items() if key != "hook_name"},
         "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8},
        relu, old=True, further={"scaling_factor": torch.ones(LATENTS)},
    ),
    "3, no architecture": Published(
        {**OLD, "sae_lens_training_version": "3.1.1", "normalize_activations": False}, relu,
        old=True,
    ),
    "3, scaled without a file": Published(
        {**OLD, "normalize_activations": "expected_average_only_in"}, relu, old=True
    ),
    "4, jumprelu": Published(
        {**OLD, "architecture": "jumprelu", "activation_fn_str": "relu"}, jumprelu, old=True,
        latents=("b_enc", "threshold"),
    ),
    "4, gated": Published(
        {**OLD, "architecture": "gated", "activation_fn_str": "relu"}, gated, old=True,
        latents=("b_gate", "b_mag", "r_mag"),
    ),
    "5, topk": Published(
        {**OLD, "architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": K},
         "normalize_activations": "none"}, topk, None, old=True,
    ),
    "OpenAI's topk": Published(
        {**OLD, "architecture": "standard", "activation_fn_str": "topk",
         "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"},
        normalised_topk, "normalize_activations='layer_norm'", old=True,
    ),
    "6, topk": Published({**NEW, "architecture": "topk", "k": K}, topk, None),
    "6, topk's checkpoint": Published(
        {**NEW, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True,
         "aux_loss_coefficient": 1.0, "use_sparse_activations": False, "decoder_init_norm": 0.1},
        rescaled_topk, None,
    ),
    "6, topk, bfloat16 in a float32 config": Published(
        {**NEW, "architecture": "topk", "k": K}, topk, None, dtype=torch.bfloat16
    ),
    "6, batchtopk's final jumprelu": Published(
        {**NEW, "architecture": "jumprelu"}, jumprelu, latents=("b_enc", "threshold")
    ),
    "6, abstopk": Published({**NEW, "architecture": "abstopk", "k": K}, signed_topk),
    "6, float16": Published(
        {**NEW, "architecture": "standard"}, relu, dtype=torch.float16
    ),
    "6, matching pursuit": Published(
        {**NEW, "architecture": "matching_pursuit", "max_iterations": 2, "residual_threshold": 1e-6,
         "stop_on_duplicate_support": False}, pursuit,
    ),
    "6, transcoder": Published({**NEW, "architecture": "transcoder", **TRANSCODES}, transcoder),
    "6, skip_transcoder": Published(
        {**NEW, "architecture": "skip_transcoder", **TRANSCODES}, transcoder
    ),
    "6, jumprelu_transcoder": Published(
        {**NEW, "architecture": "jumprelu_transcoder", **TRANSCODES}, transcoder,
        latents=("b_enc", "threshold"),
    ),
    "6, jumprelu_skip_transcoder": Published(
        {**NEW, "architecture": "jumprelu_skip_transcoder", **TRANSCODES}, transcoder,
        latents=("b_enc", "threshold"),
    ),
}  # fmt: skip


def assert_computes(coder: Any, expected: tuple[Tensor, Tensor], x: Tensor) -> None:
    codes, output = expected
    with torch.no_grad():
        if hasattr(coder, "cfg") and hasattr(coder.cfg, "metadata"):
            found, out = coder.encode(x), coder(x)
        else:
            encoded = coder.encode(x)
            found = torch.zeros_like(codes)
            found = found.scatter_add(-1, encoded.top_indices, encoded.top_acts)
            out = coder(x).sae_out
    torch.testing.assert_close(found, codes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_it_loads_and_converts_as_the_formula_says(name: str, tmp_path: Path):
    case = CASES[name]
    tensors = case.publish(tmp_path / "coder")
    x = torch.randn(50, D)
    expected = case.formula(tensors, x)
    coder = load_coder(tmp_path / "coder").float()
    assert_computes(coder, expected, x)
    assert coder.cfg.metadata.model_name == "gpt2-small"
    assert coder.cfg.metadata.hook_name == "blocks.8.hook_resid_pre"
    # The converted coder has today's config, which any SAELens 6 reads.
    convert(tmp_path / "coder", tmp_path / "today", "saelens")
    assert_computes(load_coder(tmp_path / "today").float(), expected, x)
    assert "metadata" in json.loads((tmp_path / "today" / "cfg.json").read_text())
    if case.sparsify is None:
        convert(tmp_path / "coder", tmp_path / "sparsify", "sparsify")
        assert_computes(load_coder(tmp_path / "sparsify", host="sparsify"), expected, x)
        assert_computes(load_coder(tmp_path / "coder", host="sparsify"), expected, x)
        assert_computes(coder_to_sparsify(coder), expected, x)
        return
    calls: list[Callable[[], Any]] = [
        lambda: convert(tmp_path / "coder", tmp_path / "sparsify", "sparsify"),
        lambda: load_coder(tmp_path / "coder", host="sparsify"),
        lambda: coder_to_sparsify(coder),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match=re.escape(case.sparsify)) as refusal:
            call()
        assert "k=None" not in str(refusal.value)
        assert "choose one of" not in str(refusal.value)


def test_hook_z_is_reshaped(tmp_path: Path):
    case = Published({**NEW, "architecture": "standard", "reshape_activations": "hook_z"}, relu)
    tensors = case.publish(tmp_path / "coder")
    path = tmp_path / "coder" / "cfg.json"
    path.write_text(path.read_text().replace("blocks.8.hook_resid_pre", "blocks.8.attn.hook_z"))
    x = torch.randn(50, D)
    codes, output = relu(tensors, x)
    coder = load_coder(tmp_path / "coder")
    heads = x.view(50, 2, D // 2)
    torch.testing.assert_close(coder.encode(heads), codes)
    torch.testing.assert_close(coder(heads), output.view_as(heads), atol=1e-5, rtol=1e-4)
    assert dict(describe(tmp_path / "coder")[0].lines())["reshapes"] == "hook_z"


def test_a_repository_of_many_hooks_converts_to_folders_of_their_names(tmp_path: Path):
    for layer in range(3):
        case = CASES["2024-03, hook_point"]
        case.publish(tmp_path / "many" / f"l{layer}")
        path = tmp_path / "many" / f"l{layer}" / "cfg.json"
        hook = f"blocks.{layer}.hook_resid_pre"
        path.write_text(json.dumps({**json.loads(path.read_text()), "hook_point": hook}))
    written = convert(tmp_path / "many", tmp_path / "today")
    assert [folder.name for folder in written] == [f"blocks.{i}.hook_resid_pre" for i in range(3)]


@pytest.mark.parametrize("activation", ["tanh-relu", "abs_topk"])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_an_old_activation_that_saelens_6_would_replace_is_refused(
    activation: str, architecture: str, tmp_path: Path
):
    fields = {"activation_fn_str": activation, "activation_fn_kwargs": {"k": K}}
    case = Published({**OLD, "architecture": architecture, **fields}, relu, old=True)
    case.publish(tmp_path / "coder")
    for read in (load_coder, describe):
        with pytest.raises(CheckpointError, match=f"activation_fn='{activation}'.*sae-lens<6"):
            read(tmp_path / "coder")


@torch.no_grad()
@pytest.mark.parametrize("stored_as", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_of_finetuning_are_folded_into_the_decoder(stored_as: str, tmp_path: Path):
    """SAELens 3 to 5 multiply codes by the factors of finetuning in decode, not in encode."""
    factor = torch.rand(LATENTS) + 0.5
    fields = {**OLD, "architecture": "standard", "finetuning_scaling_factor": True}
    case = Published(fields, relu, old=True, further={stored_as: factor})
    tensors = case.publish(tmp_path / "coder")
    x = torch.randn(20, D)
    codes, output = relu(tensors | {"W_dec": tensors["W_dec"] * factor[:, None]}, x)
    coder = load_coder(tmp_path / "coder")
    torch.testing.assert_close(coder.encode(x), codes)
    torch.testing.assert_close(coder(x), output, atol=1e-5, rtol=1e-4)
    assert describe(tmp_path / "coder")


def test_a_runner_s_output_uploaded_whole_is_its_final_coder(tmp_path: Path):
    tensors = CASES["6, topk"].publish(tmp_path / "output")
    CASES["6, topk's checkpoint"].publish(tmp_path / "output" / "checkpoints" / "abc" / "1000")
    (tmp_path / "output" / "runner_cfg.json").write_text("{}")
    x = torch.randn(20, D)
    assert_computes(load_coder(tmp_path / "output"), topk(tensors, x), x)


@pytest.mark.parametrize("mode", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_what_only_training_loads_says_how_to_make_it_loadable(
    architecture: str, mode: str, tmp_path: Path
):
    folder, new = tmp_path / "checkpoint", tmp_path / "inference"
    coder_class, config_class = get_sae_training_class(architecture)
    widths = {"matryoshka_widths": [8, LATENTS]} if architecture.startswith("mat") else {}
    fields: dict[str, Any] = {"d_in": D, "d_sae": LATENTS, "k": K, "normalize_activations": mode}
    coder: Any = spread(coder_class(config_class(**fields, **widths)))
    coder.topk_threshold.fill_(0.7)
    coder.save_model(folder)
    x = torch.randn(400, D) @ torch.randn(D, D) * 3 + 1
    scaler = ActivationScaler()
    if mode == "expected_average_only_in":
        scaler.estimate_scaling_factor(D, iter(x.split(50)), 8)
    if mode == "covariance_whitening":
        scaler.estimate_whitening(D, iter(x.split(50)), 8)
    scaler.save(str(folder / "activation_scaler.json"))
    (shown,) = describe(folder)
    assert "save_inference_model" in shown.architecture
    assert dict(shown.lines())["sizes"] == f"{D} -> {LATENTS} latents -> {D}"
    calls: list[Callable[[], Any]] = [
        lambda: load_coder(folder),
        lambda: load_coder(folder, host="sparsify"),
        lambda: convert(folder, tmp_path / "out", "sparsify"),
        lambda: convert(folder, tmp_path / "out", "saelens"),
        lambda: push(folder, "me/coders", dry_run=True),
    ]
    lines: list[str] = []
    for call in calls:
        with pytest.raises(CheckpointError, match=f"'{architecture}': a training") as refusal:
            call()
        lines = re.findall(r"^  (.*)$", str(refusal.value), re.MULTILINE)
        assert "coder.save_inference_model('NEW_FOLDER')" in lines
    # Run the lines that the error gives.
    exec("\n".join(lines).replace("NEW_FOLDER", str(new)), {})
    loaded = load_coder(new)
    scaled = scaler.scale(x)
    with torch.no_grad():
        norms = coder.W_dec.norm(dim=-1)
        pre = ((scaled - coder.b_dec) @ coder.W_enc + coder.b_enc) * norms
        codes = pre * (pre > 0.7)
        output = scaler.unscale((codes / norms) @ coder.W_dec + coder.b_dec)
        same = ((loaded.encode(x) != 0) == (codes != 0)).all(-1)
        assert same.float().mean() > 0.97
        torch.testing.assert_close(loaded(x)[same], output[same], atol=1e-2, rtol=1e-3)
    assert isinstance(TrainingSAE.load_from_disk(folder), coder_class)
