"""Trains one coder in sparsify's Trainer on activations from a file.

SmolLM2 runs once for all coders. In training, CachedModel stands in its place: token ids are places
in the file, and the module at the hookpoint gives the activations there.
"""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset
from sae_lens import SAE
from sparsify import TrainConfig, Trainer
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.paper1.cases import Case
from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.sparsify import BinarySparseCoderConfig

ROW = 255  # tokens of a row of text, without the first
ROWS_PER_BATCH = 4
EPOCHS = 1


class CachedMLP(nn.Module):
    """A module whose output for given inputs is known. Width is that of either."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = torch.empty(0)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs


class CachedModel(nn.Module):
    """Stands for a model in sparsify's Trainer: one MLP, with activations from memory.

    Args:
        layer: number of the MLP's layer.
        pairs: [tokens, 2 * width], inputs and outputs of the MLP side by side.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, layer: int, pairs: Tensor) -> None:
        super().__init__()
        self._pairs = pairs
        self.layers = nn.ModuleList(nn.Module() for _ in range(layer + 1))
        self.layers[layer].add_module("mlp", CachedMLP())
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> nn.Module:
        """The module in which the Trainer looks for hookpoints."""
        return self

    @override
    def forward(self, input_ids: Tensor) -> Any:
        mlp = cast(CachedMLP, self.layers[-1].get_submodule("mlp"))
        inputs, mlp.outputs = self._pairs[input_ids].float().chunk(2, dim=-1)
        mlp(inputs)
        return SimpleNamespace(logits=None)


def train(case: Case, pairs: Tensor, folder: Path) -> SAE[Any]:
    """Train a coder in sparsify's Trainer and load it in SAELens' form.

    pairs: [tokens, 2 * width], inputs and outputs of the MLP; all whole rows are used EPOCHS times.
    """
    config = case.config()
    rows = torch.arange(len(pairs) // ROW * ROW).view(-1, ROW).repeat(EPOCHS, 1)
    settings: dict[str, Any] = {
        "batch_size": ROWS_PER_BATCH,
        "hookpoints": [case.hookpoint],
        "init_seeds": [case.seed],
        "log_to_wandb": False,
        "save_every": len(rows),
        "save_dir": str(folder),
        "run_name": case.name,
    }
    trainer = trainer_of(config, settings, rows, CachedModel(case.layer, pairs))
    for group in trainer.optimizers[0].param_groups:
        group["lr"] *= case.factor
    with silent():
        trainer.fit()
    return load_coder(folder / case.name, case.hookpoint)


def trainer_of(config: Any, settings: dict[str, Any], rows: Tensor, model: Any) -> Trainer:
    """sparsify's Trainer for rows of token ids, int64 [rows, context]."""
    binary = isinstance(config, BinarySparseCoderConfig)
    training = config.train_config(**settings) if binary else TrainConfig(config, **settings)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    with silent():
        return Trainer(training, dataset, model)


@contextlib.contextmanager
def silent() -> Any:
    """Without what sparsify prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
