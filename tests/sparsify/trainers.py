"""Runs sparsify's Trainer on chosen activations, without the cost of a language model."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from sae_binary_ext.sparsify import BinarySparseCoder

HOOKPOINT = "middle"


class LookupConfig(PretrainedConfig):
    model_type = "lookup"
    num_hidden_layers = 1


class LookupModel(PreTrainedModel):
    """A model that looks up a token's activations, passes them on, and scores all tokens.

    Args:
        activations: [tokens, d], one row for each token of the vocabulary.
    """

    config_class = LookupConfig

    def __init__(self, activations: Tensor) -> None:
        super().__init__(LookupConfig())
        self.embed = nn.Embedding(*activations.shape, _weight=activations.clone())
        self.middle = nn.Identity()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.middle(self.embed(input_ids))
        logits = hidden @ self.embed.weight.T
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return _Output(logits, loss)

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        return {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device=self.device)}


class _Output:
    def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
        self.logits, self.loss = logits, loss


def trainer_on(
    activations: Tensor, rows: Tensor, sae: SparseCoderConfig, output: Path, **settings: Any
) -> Trainer:
    """A Trainer whose hookpoint sees the activations of the tokens in `rows`, [rows, length]."""
    defaults: dict[str, Any] = {
        "batch_size": len(rows),
        "hookpoints": [HOOKPOINT],
        "log_to_wandb": False,
        "save_dir": str(output),
        "run_name": "run",
        "lr_warmup_steps": 0,
    }
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    return Trainer(TrainConfig(sae, **{**defaults, **settings}), dataset, LookupModel(activations))


def coder_in(trainer: Trainer) -> BinarySparseCoder:
    """The only coder of a Trainer."""
    (coder,) = trainer.saes.values()
    assert isinstance(coder, BinarySparseCoder)
    return coder


def gradients_of_first_step(trainer: Trainer) -> dict[str, Tensor]:
    """Train, and return the gradients at the first optimizer step, by name of the parameter."""
    coder, found = coder_in(trainer), {}

    def note(*_: Any) -> None:
        for name, parameter in coder.named_parameters():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.detach().clone())

    optimizer = getattr(trainer.optimizers[0], "base", trainer.optimizers[0])
    handle = optimizer.register_step_pre_hook(note)
    trainer.fit()
    handle.remove()
    return found
