"""Coders for conversion tests, each saved by its own host, and the formats that can store it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    RefinedSAE,
    RefinedSAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoderConfig

D, LATENTS, K = 12, 48, 6
MODEL = "HuggingFaceTB/SmolLM2-135M"
HOOKPOINT = "layers.3.mlp"
OUTPUT_HOOK, INPUT_HOOK = "blocks.3.hook_mlp_out", "blocks.3.mlp.hook_in"

SAELENS, SPARSIFY, QUIRKE, CHO = "saelens", "sparsify", "quirke2025", "cho2025"


def spread(coder: Any) -> Any:
    """Move all parameters and buffers, thresholds and biases too, away from their first values."""
    for tensor in [*coder.parameters(), *coder.buffers()]:
        tensor.data.add_(0.3 * torch.rand_like(tensor))
    return coder


def saelens_coder(coder_class: Any, config_class: Any, **fields: Any) -> Any:
    coder = spread(coder_class(config_class(**{"d_in": D, "d_sae": LATENTS, "k": K} | fields)))
    transcoder = "d_out" in vars(coder.cfg)
    coder.cfg.metadata.hook_name = INPUT_HOOK if transcoder else OUTPUT_HOOK
    if coder.cfg.reshape_activations == "hook_z":
        coder.cfg.metadata.hook_name = "blocks.3.attn.hook_z"
    if transcoder:
        coder.cfg.metadata.hook_name_out = OUTPUT_HOOK
    coder.cfg.metadata.model_name = MODEL
    return coder


def sparsify_coder(activation: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    config: Any
    if activation in ("topk", "groupmax"):
        config = SparseCoderConfig(activation, expansion_factor=LATENTS // D, k=K, **fields)
    else:
        losses = {} if "refine_passes" in fields else {"entropy_alpha": 1e-3}
        config = BinarySparseCoderConfig(
            activation, num_latents=LATENTS, k=K, ste_temperature=0.7, **losses, **fields
        )
    return spread(SparseCoder(D, config, dtype=dtype))


def with_step_at_zero(coder: Any) -> Any:
    coder.log_threshold.data.fill_(-torch.inf)
    return coder


@dataclass(frozen=True)
class Case:
    """A coder and the formats that can store it. The format of its own host comes first."""

    make: Callable[[], Any]
    formats: tuple[str, ...]

    def save(self, root: Path) -> Path:
        """Save the coder as its host does, with the place that runs of the host write."""
        coder = self.make()
        if self.formats[0] == SAELENS:
            coder.save_model(root / "saelens")
            return root / "saelens"
        coder.save_to_disk(root / "run" / HOOKPOINT)
        (root / "run" / "config.json").write_text(json.dumps({"model": MODEL}))
        return root / "run" / HOOKPOINT


def _binary(formats: tuple[str, ...], **fields: Any) -> Case:
    return Case(lambda: saelens_coder(BinarySAE, BinarySAEConfig, **fields), formats)


def _transcoder(formats: tuple[str, ...], **fields: Any) -> Case:
    return Case(lambda: saelens_coder(BinaryTranscoder, BinaryTranscoderConfig, **fields), formats)


def _sparsify(activation: str, formats: tuple[str, ...], **fields: Any) -> Case:
    return Case(lambda: sparsify_coder(activation, **fields), formats)


ALL_BUT_CHO = (SAELENS, SPARSIFY, QUIRKE)
HOSTS = (SAELENS, SPARSIFY)
SPARSIFY_FIRST = (SPARSIFY, SAELENS, QUIRKE)
REFINES: dict[str, Any] = {"refine_passes": 2, "cost_of_bit": 1e-3}
TRANSCODES: dict[str, Any] = {"transcode": True}
SKIPS: dict[str, Any] = {"transcode": True, "skip_connection": True}


def _refined(**fields: Any) -> Case:
    return Case(lambda: saelens_coder(RefinedSAE, RefinedSAEConfig, **fields), HOSTS)


CASES = {
    "saelens topk": _binary(ALL_BUT_CHO),
    "saelens groupmax": _binary(ALL_BUT_CHO, selection="groupmax", surrogate="rectangle"),
    "saelens gumbel": _binary(ALL_BUT_CHO, selection="gumbel", surrogate_temperature=0.7),
    "saelens threshold": _binary(HOSTS, selection="threshold"),
    "saelens topk float64": _binary(ALL_BUT_CHO, dtype="float64"),
    "saelens topk bfloat16": _binary(ALL_BUT_CHO, dtype="bfloat16"),
    "saelens topk uncentred": _binary(HOSTS, apply_b_dec_to_input=False),
    "saelens threshold uncentred": _binary(
        ALL_BUT_CHO, selection="threshold", surrogate="reste", apply_b_dec_to_input=False
    ),
    "saelens step at zero": Case(
        lambda: with_step_at_zero(
            saelens_coder(
                BinarySAE,
                BinarySAEConfig,
                selection="threshold",
                surrogate_temperature=0.5,
                apply_b_dec_to_input=False,
            )
        ),
        (*ALL_BUT_CHO, CHO),
    ),
    "saelens layer_norm": _binary((SAELENS,), normalize_activations="layer_norm"),
    "saelens hook_z": _binary((SAELENS,), reshape_activations="hook_z"),
    "saelens refined": _refined(),
    "saelens refined threshold": _refined(selection="threshold", apply_b_dec_to_input=False),
    "saelens refined groupmax": _refined(selection="groupmax"),
    "saelens refined bfloat16": _refined(dtype="bfloat16"),
    "saelens transcoder": _transcoder(ALL_BUT_CHO),
    "saelens skip transcoder": _transcoder(ALL_BUT_CHO, skip_connection=True),
    "saelens wide transcoder": _transcoder((SAELENS,), d_out=5, skip_connection=True),
    "saelens continuous": Case(lambda: saelens_coder(TopKSAE, TopKSAEConfig), HOSTS),
    "saelens continuous uncentred": Case(
        lambda: saelens_coder(TopKSAE, TopKSAEConfig, apply_b_dec_to_input=False), (SAELENS,)
    ),
    "saelens continuous rescaled": Case(
        lambda: saelens_coder(
            TopKSAE, TopKSAEConfig, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False
        ),
        (SAELENS,),
    ),
    "saelens continuous transcoder": Case(
        lambda: saelens_coder(TopKTranscoder, TopKTranscoderConfig), HOSTS
    ),
    "saelens continuous skip transcoder": Case(
        lambda: saelens_coder(TopKTranscoder, TopKTranscoderConfig, skip_connection=True), HOSTS
    ),
    "sparsify topk_binary": _sparsify("topk_binary", SPARSIFY_FIRST),
    "sparsify topk_binary float64": _sparsify("topk_binary", SPARSIFY_FIRST, dtype=torch.float64),
    "sparsify groupmax_binary": _sparsify("groupmax_binary", SPARSIFY_FIRST),
    "sparsify gumbel_binary": _sparsify("gumbel_binary", SPARSIFY_FIRST),
    "sparsify binary": _sparsify("binary", (SPARSIFY, SAELENS)),
    "sparsify binary uncentred": _sparsify("binary", SPARSIFY_FIRST, subtract_b_dec=False),
    "sparsify skip autoencoder": _sparsify("topk_binary", (SPARSIFY, QUIRKE), skip_connection=True),
    "sparsify refined": _sparsify("topk_binary", (SPARSIFY, SAELENS), **REFINES),
    "sparsify refined float64": _sparsify(
        "binary", (SPARSIFY, SAELENS), **REFINES, dtype=torch.float64
    ),
    "sparsify refined skip autoencoder": _sparsify(
        "topk_binary", (SPARSIFY,), **REFINES, skip_connection=True
    ),
    "sparsify transcoder": _sparsify("topk_binary", SPARSIFY_FIRST, **TRANSCODES),
    "sparsify threshold transcoder": _sparsify("binary", SPARSIFY_FIRST, **TRANSCODES),
    "sparsify skip transcoder": _sparsify("topk_binary", SPARSIFY_FIRST, **SKIPS),
    "sparsify groupmax": _sparsify("groupmax", (SPARSIFY,)),
    "sparsify continuous": _sparsify("topk", (SPARSIFY, SAELENS)),
    "sparsify continuous float64": _sparsify("topk", (SPARSIFY, SAELENS), dtype=torch.float64),
    "sparsify continuous transcoder": _sparsify("topk", (SPARSIFY, SAELENS), **TRANSCODES),
    "sparsify continuous skip transcoder": _sparsify("topk", (SPARSIFY, SAELENS), **SKIPS),
}
