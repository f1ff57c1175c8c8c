"""Models to which SAELens attaches coders, and configs of SAELens' runner."""

from pathlib import Path
from typing import Any

from sae_lens import (
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    SAETransformerBridge,
)
from transformer_lens import HookedTransformerConfig

TOKENS_PER_STEP = 64


def hooked_transformer(folder: Path) -> HookedSAETransformer:
    """A tiny model with random weights. TransformerLens cannot load the folder's model."""
    return HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, d_vocab=60, n_ctx=64,
            act_fn="relu", seed=0,
        )
    )  # fmt: skip


def bridge(folder: Path) -> SAETransformerBridge:
    """Load the model of a Hugging Face folder as SAELens' bridge."""
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu")


def runner_config(
    sae: Any, model: Path, dataset: Path, output: Path, steps: int = 30, **settings: Any
) -> LanguageModelSAERunnerConfig[Any]:
    """Config of a run of a few short steps. The model and the dataset are read from folders."""
    return LanguageModelSAERunnerConfig(
        **{
            "sae": sae,
            "model_name": str(model),
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": "model.layers.0",
            "dataset_path": str(dataset),
            "is_dataset_tokenized": False,
            "streaming": False,
            "context_size": 16,
            "seqpos_slice": (1, None),
            "train_batch_size_tokens": TOKENS_PER_STEP,
            "training_tokens": steps * TOKENS_PER_STEP,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 3,
            "lr": 3e-3,
            "logger": LoggingConfig(log_to_wandb=False),
            "checkpoint_path": None,
            "output_path": str(output),
            "verbose": False,
            **settings,
        }
    )
