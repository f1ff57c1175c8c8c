"""The settings of `sae-binary multi-bit`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.settings import ActivationsFields, ReadingConfig


@dataclass
class MultiBitConfig(ActivationsFields, ReadingConfig):
    """Give each latent of binary coders several thresholds; refit and save the new coders."""

    output: Path = Path("runs/multi-bit")
    """Folder for coders, multi-bit.json and multi-bit.html."""
    tokens: int = 100_000
    """How many tokens to read. Memory holds their activations. Half of them fit the decoders."""
    levels: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Numbers of thresholds per latent. Each number gives one new coder for each coder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels={self.levels}: give numbers of at least 1.")
