"""A tiny Llama, and random transcoders of its layers."""

from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_binary_ext.saelens import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
)
from tests.small_models import VOCABULARY, save_tokenizer

LAYERS, WIDTH, LATENTS, K = 3, 16, 64, 8


def save_llama(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)


def hooked_llama(folder: Path) -> HookedTransformer:
    """The folder's Llama as a HookedTransformer, which loads no folders by itself."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = HookedTransformerConfig(
        model_name="tiny-llama",
        n_layers=LAYERS,
        d_model=WIDTH,
        n_heads=2,
        d_head=WIDTH // 2,
        d_mlp=32,
        d_vocab=VOCABULARY,
        n_ctx=32,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        eps=plain.config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=WIDTH // 2,
        rotary_adjacent_pairs=False,
        final_rms=True,
        original_architecture="LlamaForCausalLM",
    )
    model = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    weights = convert_llama_weights(plain, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    return model


def layer_coder(kind: str, layer: int, skip: bool = False) -> Any:
    """A random transcoder of a layer's MLP: binary with a selection, or TopK for "stock"."""
    torch.manual_seed(layer)
    sizes: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": K, "skip_connection": skip}
    if kind == "stock":
        coder = TopKTranscoder(TopKTranscoderConfig(**sizes, rescale_acts_by_decoder_norm=False))
    else:
        coder = BinaryTranscoder(BinaryTranscoderConfig(**sizes, selection=kind))
        coder.log_threshold.data.normal_(-1, 0.5)
    for parameter in (coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec, coder.W_skip):
        if parameter is not None:
            parameter.data.normal_(std=0.2)
    metadata = coder.cfg.metadata
    metadata.model_name = "tiny-llama"
    metadata.hook_name = f"model.layers.{layer}.post_attention_layernorm"
    metadata.hook_name_out = f"model.layers.{layer}.mlp"
    return coder
