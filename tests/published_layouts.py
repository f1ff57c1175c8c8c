"""Random coders in the files of published repositories, as bytes by the path in a repository."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

Files = dict[str, bytes]
LAYER = 12
HOOK = f"blocks.{LAYER}.hook_resid_post"
# Classes of dictionary_learning, with the names that each gives to its tensors. The shapes are
# those of torch's linear layers, or of SAELens' tensors for names that SAELens has too.
DICTIONARIES: dict[str, tuple[str, ...]] = {
    "AutoEncoder": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
    "AutoEncoderTopK": (
        "encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold",
    ),
    "BatchTopKSAE": (
        "encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold",
    ),
    "GatedAutoEncoder": (
        "encoder.weight", "decoder.weight", "decoder_bias", "gate_bias", "mag_bias", "r_mag",
    ),
    "JumpReluAutoEncoder": ("W_enc", "W_dec", "b_enc", "b_dec", "thresholds"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold"),
}  # fmt: skip


def saved(coder: Any, path: str) -> Files:
    """A coder of either host, as its own save method writes it."""
    with tempfile.TemporaryDirectory() as folder:
        write = coder.save_model if hasattr(coder, "save_model") else coder.save_to_disk
        write(Path(folder))
        return {f"{path}/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}


def dictionary_learning(path: str, kind: str, width: int, latents: int, k: int) -> Files:
    """A coder of dictionary_learning: SAEBench's, andyrdt's and others'."""
    shapes = {
        "encoder.weight": (latents, width), "decoder.weight": (width, latents),
        "W_enc": (width, latents), "W_dec": (latents, width),
        **dict.fromkeys(("bias", "b_dec", "decoder_bias"), (width,)),
        **dict.fromkeys(("k", "threshold"), ()),
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for name in DICTIONARIES[kind]:
        state[name] = torch.randn(shapes.get(name, (latents,))) * 0.3
    if "k" in state:
        state["k"] = torch.tensor(k)
        state["threshold"] = torch.tensor(1.0)
    if "thresholds" in state:
        state["threshold"] = state.pop("thresholds").abs()
    trainer = {
        "dict_class": kind, "activation_dim": width, "dict_size": latents, "k": k, "layer": LAYER,
        "lm_name": "google/gemma-2-2b",
    }  # fmt: skip
    stream = io.BytesIO()
    torch.save(state, stream)
    config = json.dumps({"trainer": trainer, "buffer": {"ctx_len": 1024}}).encode()
    return {f"{path}/ae.pt": stream.getvalue(), f"{path}/config.json": config}


def temporal(path: str, width: int, latents: int, k: int) -> Files:
    """A temporal coder of canrager/temporalSAEs."""
    sae = {
        "exp_factor": latents / width, "n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 4,
        "sae_diff_type": "topk", "kval_topk": k, "tied_weights": True, "scaling_factor": 4.0,
    }  # fmt: skip
    config = {"llm": {"dimin": width}, "sae": sae, "data": {"dtype": "float32"}}
    inner = latents // 4
    shapes = {"D": (latents, width), "b": (width,)}
    for name, rows in (("k_ctx", inner), ("q_target", inner), ("v_ctx", latents)):
        shapes[f"attn_layers.0.{name}.weight"] = (rows, latents)
        shapes[f"attn_layers.0.{name}.bias"] = (rows,)
    shapes["attn_layers.0.c_proj.weight"] = (latents, latents)
    shapes["attn_layers.0.c_proj.bias"] = (latents,)
    state = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    return {
        f"{path}/latest_ckpt.safetensors": save(state),
        f"{path}/conf.yaml": yaml.safe_dump(config).encode(),
    }


def llama_scope(path: str, width: int, latents: int, hook: str) -> Files:
    """A coder of Llama Scope, whose activations are scaled by a factor in SAELens' list."""
    config = {
        "d_model": width, "d_sae": latents, "hook_point_in": hook, "jump_relu_threshold": 0.7,
        "dataset_average_activation_norm": {"in": 12.0, "out": 12.0},
    }  # fmt: skip
    state = {
        "encoder.weight": torch.randn(latents, width), "encoder.bias": torch.randn(latents),
        "decoder.weight": torch.randn(width, latents), "decoder.bias": torch.randn(width),
    }  # fmt: skip
    return {
        f"{path}/checkpoints/final.safetensors": save(state),
        f"{path}/hyperparams.json": json.dumps(config).encode(),
    }


def gemma_scope_2(path: str, width: int, latents: int) -> Files:
    """A coder of Gemma Scope 2."""
    state = {
        "w_enc": torch.randn(width, latents), "w_dec": torch.randn(latents, width) * 0.3,
        "b_enc": torch.zeros(latents), "b_dec": torch.zeros(width),
        "threshold": torch.full((latents,), 0.5),
    }  # fmt: skip
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
    return {f"{path}/params.safetensors": save(state), f"{path}/config.json": _json(config)}


def circuit_tracer(width: int, latents: int) -> Files:
    """The first transcoder of a set that circuit-tracer reads, mwhanna's."""
    state = {
        "W_enc": torch.randn(latents, width), "b_enc": torch.randn(latents),
        "W_dec": torch.randn(latents, width) * 0.1, "b_dec": torch.randn(width),
    }  # fmt: skip
    of_run = {"d_model": width, "d_feature": latents, "batch_size": 64}
    return {
        "layer_0.safetensors": save(state),
        "config.yaml": b"model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n",
        "wandb-config.yaml": _json({name: {"value": value} for name, value in of_run.items()}),
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
