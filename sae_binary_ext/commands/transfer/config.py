"""The settings of `sae-binary transfer`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.settings import ActivationsFields, ReadingConfig


@dataclass
class TransferConfig(ActivationsFields, ReadingConfig):
    """Apply coders of one layer to others: unchanged, rescaled, and with a refitted decoder."""

    output: Path = Path("runs/transfer")
    """Folder for transfer.json and transfer.html."""
    tokens: int = 30_000
    """How many tokens to read. Memory holds their activations at all layers."""
    layers: list[int] = field(default_factory=list)
    """Layers to apply coders to, besides their own layer. If left out: every third layer."""
