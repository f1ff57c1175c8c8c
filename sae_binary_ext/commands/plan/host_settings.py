"""Settings for both hosts' command lines, as files that `sae-binary run @FILE` takes."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from sae_binary_ext.commands.plan.config import STOCK, WITH_K, PlanConfig
from sae_binary_ext.commands.plan.model_sizes import ModelSizes

# Learning rates that were good on SmolLM2 (docs/choosing.md, docs/demo.md).
_RATES = {"binary": 3e-3, "binary_entropy": 2e-3, "binary_refined": 3e-3, "topk": 1e-3}
# Settings of the plan alone, which no host's setting depends on.
_OF_PLAN = ("output", "rate", "device_memory")
# Price of a bit, as a share of variance.
_PRICE = "4e-4"
# Batches from which SAELens estimates the norm of activations.
NORM_BATCHES = 20
# Options of sparsify for each architecture.
_ACTIVATIONS = {
    "binary": {"activation": "topk_binary"},
    "binary_entropy": {"activation": "binary", "entropy_alpha": _PRICE},
    "binary_refined": {
        "activation": "binary",
        "refine_passes": 12,
        "cost_of_bit": _PRICE,
        "ste_temperature": 0.5,
    },
    "topk": {"activation": "topk"},
}


def saelens_settings(config: PlanConfig, sizes: ModelSizes, layer: int, latents: int) -> str:
    """Arguments of SAELens' runner, or of the runner of transcoders, one option a line."""
    module = f"{sizes.family.layers}.{layer}"
    options: dict[str, Any] = {
        "d_in": sizes.width,
        "d_sae": latents,
        **({"k": config.k} if config.architecture in WITH_K else {}),
        "normalize_activations": "expected_average_only_in",
        "n_batches_for_norm_estimate": NORM_BATCHES,
        "model_name": config.model,
        "model_class_name": "AutoModelForCausalLM",
        "dataset_path": config.dataset,
        "context_size": config.context_size,
        "train_batch_size_tokens": config.batch_size,
        "training_tokens": config.tokens,
        "store_batch_size_prompts": config.store_batch_size_prompts,
        "n_batches_in_buffer": config.n_batches_in_buffer,
        "lr": _RATES[config.architecture],
        "device": config.device,
        # SAELens' runner and its coder each have these two fields.
        "sae.device": config.device,
        "dtype": config.dtype,
        "sae.dtype": config.dtype,
        "log_to_wandb": False,
        "output_path": "output",
    }
    if config.transcoder:
        runner = "sae_binary_ext.saelens.train_transcoders"
        kind = config.architecture if config.architecture in STOCK else "binary"
        options["architecture"] = f"{kind}_transcoder"
        if config.architecture == "binary_entropy":
            options |= {"selection": "threshold", "entropy_coefficient": _PRICE}
        options |= {
            "hook_name": f"{module}.{sizes.family.mlp_input}",
            "hook_name_out": f"{module}.mlp",
            "lr": 2e-3,
        }
    else:
        runner = "sae_lens.llm_sae_training_runner"
        options |= {"architecture": config.architecture, "hook_name": module}
        options["is_dataset_tokenized"] = False
        if config.architecture == "binary_entropy":
            options["entropy_coefficient"] = _PRICE
    # Position 0 is an attention sink in most models.
    lines = [*_lines(options), f"--seqpos_slice 1 {config.context_size}"]
    return _file(config, "sae-binary", f"-m {runner}", lines)


def sparsify_settings(config: PlanConfig, sizes: ModelSizes, layer: int, latents: int) -> str:
    """Arguments of sparsify's command line, one option a line."""
    layers = sizes.family.layers.rpartition(".")[2]
    options: dict[str, Any] = {
        **_ACTIVATIONS[config.architecture],
        "num_latents": latents,
        "k": config.k,
        "hookpoints": f"{layers}.{layer}" + ".mlp" * config.transcoder,
        **({"transcode": True} if config.transcoder else {}),
        "ctx_len": config.context_size,
        "batch_size": sequences(config),
        "max_examples": -(-config.tokens // config.context_size),
        "optimizer": config.optimizer if config.host == "sparsify" else None,
        "log_to_wandb": False,
        "run_name": "run",
    }
    program = "sae-binary"
    if config.ranks > 1:
        program = f"torchrun --nproc_per_node {config.ranks} -m sae_binary_ext"
    names = shlex.join((config.model, config.dataset))
    return _file(config, program, f"-m sparsify {names}", _lines(options))


def sequences(config: PlanConfig) -> int:
    """Rows of text in a training step of sparsify, on each rank."""
    return max(1, config.batch_size // config.context_size)


def _lines(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value is not None:
            yield f"--{name} {shlex.quote(str(value))}"


def _file(config: PlanConfig, program: str, host: str, lines: Iterable[str]) -> str:
    comments = f"# {program} run @THIS_FILE", f"# written by: sae-binary plan {_arguments(config)}"
    return "\n".join([*comments, host, *lines, ""])


def _arguments(config: PlanConfig) -> str:
    """The command's options that differ from their defaults and that settings depend on."""
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "sizes":
            words += ["--sizes", *value] if value else []
        elif value != field.default and field.name not in _OF_PLAN:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)
