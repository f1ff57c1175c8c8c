"""SAELens' models to attach coders to."""

from pathlib import Path

from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens import HookedTransformerConfig


def hooked_transformer(folder: Path) -> HookedSAETransformer:
    """A tiny random one; the folder is not read, TransformerLens having no such model."""
    return HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, d_vocab=60, n_ctx=64,
            act_fn="relu", seed=0,
        )
    )  # fmt: skip


def bridge(folder: Path) -> SAETransformerBridge:
    """The model of a Hugging Face folder."""
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu")
