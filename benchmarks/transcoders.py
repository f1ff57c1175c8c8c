"""Transcoders of one MLP of SmolLM2, trained by both hosts on the same 300,000 pairs.

python benchmarks/transcoders.py FOLDER [--layer 9] [--tokens 300000]

Without a GPU sparsify needs SPARSIFY_DISABLE_TRITON=1 in the environment. Each host runs its own
trainer on the same batches, with Adam, k = 32 and 8 latents for each dimension. The figures printed
are of articles that no coder was trained on. The learning rates were chosen on training articles.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, LoggingConfig, SAETransformerBridge
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from sae_binary_ext.bundled.smollm2 import export_smollm2
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands.demo.activations import tokenised_rows
from sae_binary_ext.commands.demo.config import FIRST_POSITION, DemoConfig
from sae_binary_ext.measure import SplicedModel, measure, read_pairs
from sae_binary_ext.saelens import (
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
    TranscoderTrainingRunner,
)
from sae_binary_ext.sparsify import BinarySparseCoderConfig

WIDTH, LATENTS, K, CONTEXT, ROWS_A_STEP = 576, 4608, 32, 128, 8
TOKENS_A_STEP = ROWS_A_STEP * (CONTEXT - FIRST_POSITION)
WARM_UP_STEPS = 30

SPARSIFY_SIZES: dict[str, Any] = {"k": K, "num_latents": LATENTS, "transcode": True}
SAELENS_SIZES: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "k": K}
# Settings of a binary coder in the first paper.
SELECTED: dict[str, Any] = {"surrogate_latents": "selected", "pre_act_loss_coefficient": 0.0}
# Config and learning rate of each coder. The first two coders are the same in both hosts.
IN_SPARSIFY: dict[str, tuple[SparseCoderConfig, float]] = {
    "sparsify topk": (SparseCoderConfig(**SPARSIFY_SIZES), 2e-2),
    "sparsify topk_binary": (
        BinarySparseCoderConfig(ste_temperature=2.0, ste_latents="selected", **SPARSIFY_SIZES),
        3e-2,
    ),
}
IN_SAELENS: dict[str, tuple[Any, float]] = {
    "topk_transcoder": (TopKTranscoderTrainingSAEConfig(**SAELENS_SIZES), 2e-2),
    "binary_transcoder": (
        BinaryTranscoderTrainingSAEConfig(surrogate_temperature=2.0, **SELECTED, **SAELENS_SIZES),
        3e-2,
    ),
    "topk_transcoder, scaled": (
        TopKTranscoderTrainingSAEConfig(
            normalize_activations="expected_average_only_in", **SAELENS_SIZES
        ),
        3e-3,
    ),
    "binary_transcoder, whitened": (
        BinaryTranscoderTrainingSAEConfig(
            normalize_activations="covariance_whitening", **SELECTED, **SAELENS_SIZES
        ),
        1e-2,
    ),
}


def train_in_sparsify(
    model_folder: Path, layer: int, rows: Tensor, bos: int, output: Path
) -> dict[str, SAE[Any]]:
    """Train each coder in sparsify's Trainer, on the model without the layers above this one."""
    trained: dict[str, SAE[Any]] = {}
    for name, (config, lr) in IN_SPARSIFY.items():
        torch.manual_seed(0)
        model = AutoModel.from_pretrained(
            model_folder, dtype=torch.float32, num_hidden_layers=layer + 1
        )
        settings = TrainConfig(
            config,
            batch_size=ROWS_A_STEP,
            hookpoints=[f"layers.{layer}.mlp"],
            exclude_tokens=[bos],
            optimizer="adam",
            lr=lr,
            lr_warmup_steps=WARM_UP_STEPS,
            log_to_wandb=False,
            save_dir=str(output),
            run_name=name,
        )
        dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
        Trainer(settings, dataset, model).fit()
        trained[name] = load_coder(output / name, f"layers.{layer}.mlp", host="saelens")
    return trained


def train_in_saelens(model: Any, layer: int, rows: Tensor, output: Path) -> dict[str, SAE[Any]]:
    """Train all transcoders at once in SAELens' trainer."""
    torch.manual_seed(0)
    steps = len(rows) // ROWS_A_STEP
    config = TranscoderRunnerConfig(
        saes={name: sae for name, (sae, _) in IN_SAELENS.items()},
        lrs={name: lr for name, (_, lr) in IN_SAELENS.items()},
        hook_name=f"blocks.{layer}.mlp.hook_in",
        hook_name_out=f"blocks.{layer}.hook_mlp_out",
        context_size=CONTEXT,
        seqpos_slice=(FIRST_POSITION, None),
        streaming=False,
        prepend_bos=False,
        store_batch_size_prompts=ROWS_A_STEP,
        train_batch_size_tokens=TOKENS_A_STEP,
        training_tokens=steps * TOKENS_A_STEP,
        n_batches_in_buffer=ROWS_A_STEP,
        activations_mixing_fraction=0.0,  # no mixing, as in sparsify
        n_batches_for_norm_estimate=10,
        lr_warm_up_steps=WARM_UP_STEPS,
        lr_decay_steps=steps - WARM_UP_STEPS,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(output),
    )
    dataset = Dataset.from_dict({"input_ids": rows.tolist()})
    TranscoderTrainingRunner(config, override_dataset=dataset, override_model=model).run()
    return {name: SAE.load_from_disk(output / name) for name in IN_SAELENS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=300_000)
    arguments = parser.parse_args()
    folder, layer = arguments.folder, arguments.layer
    model_folder = export_smollm2(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows, held_out = tokenised_rows(
        DemoConfig(context_size=CONTEXT, training_tokens=arguments.tokens), tokenizer
    )
    rows = rows[: len(rows) // ROWS_A_STEP * ROWS_A_STEP]
    print(f"{rows[:, FIRST_POSITION:].numel()} training pairs, layer {layer}", flush=True)

    model = SAETransformerBridge.boot_transformers(str(model_folder), device="cpu")
    hooks = (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out")
    inputs, targets = read_pairs(model, held_out, *hooks, first_position=FIRST_POSITION)
    spliced = SplicedModel(model, held_out[:16], *hooks, first_position=FIRST_POSITION)
    print("coder | FVU | L0 | dead | dense >10% | CE recovered", flush=True)
    for train in (
        lambda: train_in_saelens(model, layer, rows, folder / "saelens"),
        lambda: train_in_sparsify(
            model_folder, layer, rows, tokenizer.bos_token_id, folder / "sparsify"
        ),
    ):
        start = time.perf_counter()
        for name, coder in train().items():
            figures = measure(coder, inputs, targets)
            recovered = spliced.losses(coder).recovered
            print(
                f"{name} | {figures.fvu:.3f} | {figures.l0:.1f} | {figures.dead} | "
                f"{figures.dense_10} | {recovered:.1%}",
                flush=True,
            )
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
