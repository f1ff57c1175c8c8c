"""Tiny models and random coders for the tests of steering, and the activations at a layer."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETransformerBridge, TopKSAE, TopKSAEConfig
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.layer_coders import LATENTS, WIDTH, hooked_llama
from tests.small_models import VOCABULARY

HOOK, MODULE, K = "blocks.1.hook_resid_post", "layers.1", 8
TOKENS = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


def new_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# Tests that change a model take a new one.
plain, hooked = cache(new_plain), cache(hooked_llama)


@cache
def bridge(folder: Path) -> Any:
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu")


MODELS = {"plain": plain, "bridge": bridge, "hooked": hooked}


def random_weights(coder: Any) -> Any:
    """The coder with random weights, so that about half of its latents can fire."""
    for parameter in coder.parameters():
        parameter.data.normal_(std=0.3)
    if hasattr(coder, "log_threshold"):
        coder.log_threshold.data.fill_(-3)
    return coder.requires_grad_(False)


def binary(dtype: str = "float32", **fields: Any) -> BinarySAE:
    settings: dict[str, Any] = {"selection": "threshold", "dtype": dtype} | fields
    coder = random_weights(BinarySAE(BinarySAEConfig(d_in=WIDTH, d_sae=LATENTS, **settings)))
    coder.cfg.metadata.hook_name = HOOK
    return coder


def topk(dtype: str = "float32", **fields: Any) -> TopKSAE:
    settings: dict[str, Any] = {"k": K, "dtype": dtype} | fields
    coder = random_weights(TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, **settings)))
    coder.cfg.metadata.hook_name = HOOK
    return coder


def sparsify_binary(dtype: torch.dtype = torch.float32) -> Any:
    config = BinarySparseCoderConfig(activation="binary", num_latents=LATENTS)
    return random_weights(BinarySparseCoder(WIDTH, config, dtype=dtype))


def sparsify_topk(dtype: torch.dtype = torch.float32) -> Any:
    return random_weights(
        SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K), dtype=dtype)
    )


@contextmanager
def kept(module: Any) -> Generator[list[Tensor]]:
    """Outputs of a module in the block's forward passes, after hooks that were there before."""
    found: list[Tensor] = []

    def keep(*given: Any) -> None:
        output = given[2]
        found.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def outputs_of(model: Any, tokens: Tensor = TOKENS, module: str = MODULE, **more: Any) -> Tensor:
    """Output of a module of a plain model, [rows, context, width]."""
    with kept(model.base_model.get_submodule(module)) as found, torch.no_grad():
        model(tokens, **more)
    (output,) = found
    return output


def codes_and_decode(coder: Any, x: Tensor, change: Any) -> tuple[Tensor, Tensor]:
    """Codes of x, and decode(change(codes)) - decode(codes), by the host's own two functions."""
    if isinstance(coder, SAE):
        codes = coder.encode(x)
        before = coder.decode(codes)
        coder.encode(x)  # decode takes the statistics of the last input
        return codes, coder.decode(change(codes)) - before
    acts, indices, _ = coder.encode(x)
    codes = acts.new_zeros(*x.shape[:-1], LATENTS).scatter(-1, indices, acts)
    return codes, (change(codes) - codes) @ coder.W_dec
