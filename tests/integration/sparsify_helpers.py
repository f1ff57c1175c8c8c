"""Helpers to train coders in sparsify's own Trainer, on a model from a folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

BEGIN = 0  # the tiny model's beginning-of-sequence token


def token_rows(rows: int, length: int, vocabulary: int) -> Tensor:
    """Random tokens, [rows, length]. Each row starts with the beginning-of-sequence token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, vocabulary, (rows, length), generator=generator)
    tokens[:, 0] = BEGIN
    return tokens


def trainer_for(
    model_folder: Path, sae: SparseCoderConfig, tokens: Tensor, output: Path, **settings: Any
) -> Trainer:
    """A Trainer with a coder for each layer's MLP, which does not log to Weights & Biases."""
    end_to_end = settings.get("loss_fn", "fvu") != "fvu"
    model_class = AutoModelForCausalLM if end_to_end else AutoModel
    model = model_class.from_pretrained(model_folder, dtype=torch.float32)
    defaults: dict[str, Any] = {
        "batch_size": 4,
        "hookpoints": ["layers.*.mlp"],
        "exclude_tokens": [BEGIN],
        "log_to_wandb": False,
        "save_dir": str(output),
        "run_name": "run",
        "lr_warmup_steps": 0,
    }
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    return Trainer(TrainConfig(sae, **{**defaults, **settings}), dataset, model)


def record_fvu(trainer: Trainer) -> dict[str, list[float]]:
    """Record the FVU of each later forward pass of a coder, in a list for each hookpoint."""
    history: dict[str, list[float]] = {name: [] for name in trainer.saes}
    for name, coder in trainer.saes.items():
        coder.register_forward_hook(
            lambda _, __, output, name=name: history[name].append(output.fvu.item())
        )
    return history


def mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values)).mean().item()


def train_stock_coders(model_folder: Path, output: Path) -> None:
    """Train sparsify's own coders. Each activation gets its own folder inside output."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that each process adds in the same order
    for activation in ("topk", "groupmax"):
        sae = SparseCoderConfig(activation=activation, k=8, expansion_factor=8)
        tokens = token_rows(40, 32, 60)
        trainer_for(model_folder, sae, tokens, output / activation, auxk_alpha=0.1).fit()
    torch.set_num_threads(threads)
