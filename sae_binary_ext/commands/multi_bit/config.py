"""The settings of `sae-binary multi-bit`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.settings import ReadingConfig


@dataclass
class MultiBitConfig(ReadingConfig):
    """Give each latent of binary coders several thresholds, and refit and save the new coders."""

    output: Path = Path("runs/multi-bit")
    """Folder for coders, multi-bit.json and multi-bit.html."""
    tokens: int = 100_000
    """Tokens to read. Memory holds their activations; decoders are fitted to half of them."""
    levels: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Thresholds per latent. Each number makes one coder of each source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels={self.levels}: give numbers of at least 1.")
