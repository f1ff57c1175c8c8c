"""The settings of `sae-binary ablate`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ReadingConfig

RANKINGS, CHANGES = ("burstiness", "rate", "effect"), ("zero", "flip")


@dataclass
class AblateConfig(ReadingConfig):
    """
    Silence or flip latents of coders, one by one and in groups of equal firings, and measure what
    reconstruction and model lose, beside random latents of the same rate.
    """

    output: Path = Path("runs/ablate")
    """Folder for ablate.json and ablate.html."""
    tokens: int = 30_000
    """Tokens to read for firing rates and ranking."""
    spliced_tokens: int = 3_000
    """Of these, tokens on which the changes are measured, in the model: every so many rows."""
    ranking: str = "effect"
    """effect (norm of the decoder row times the code's deviation), rate, or burstiness."""
    change: str = "zero"
    """zero, or flip (binary coders alone)."""
    groups: int = 8
    """Groups of latents, which fire equally often."""
    latents: int = 5
    """Of the ranking's first latents, how many one by one."""
    seed: int = 0
    """Of the random latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(RANKINGS, ranking=self.ranking)
        check_choice(CHANGES, change=self.change)
        check_at_least(1, spliced_tokens=self.spliced_tokens, groups=self.groups)
        check_at_least(0, latents=self.latents)
