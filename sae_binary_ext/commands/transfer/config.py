"""The settings of `sae-binary transfer`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.settings import ReadingConfig


@dataclass
class TransferConfig(ReadingConfig):
    """
    Apply coders of one layer to the others, as they are, to activations scaled to the norm at
    home, and with the decoder refitted.
    """

    output: Path = Path("runs/transfer")
    """Folder for transfer.json and transfer.html."""
    tokens: int = 30_000
    """Tokens to read; their activations at all layers are kept in memory."""
    layers: list[int] = field(default_factory=list)
    """Layers to apply coders at, beside their own; every third if left out."""
