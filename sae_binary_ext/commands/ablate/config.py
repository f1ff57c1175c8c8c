"""The settings of `sae-binary ablate`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ReadingConfig

RANKINGS, CHANGES = ("burstiness", "rate", "effect"), ("zero", "flip")


@dataclass
class AblateConfig(ReadingConfig):
    """Silence or flip latents; compare the rise of error and loss with that of random latents."""

    output: Path = Path("runs/ablate")
    """Folder for ablate.json and ablate.html."""
    tokens: int = 30_000
    """Tokens to read for firing rates and ranking."""
    spliced_tokens: int = 3_000
    """How many of these tokens the changes are measured on. Their rows are spread over the text."""
    ranking: str = "effect"
    """Order of the latents: effect (norm of the decoder row times the code's standard deviation),
    rate, or burstiness."""
    change: str = "zero"
    """zero silences latents; flip turns 0 to 1 and 1 to 0, for binary coders only."""
    groups: int = 8
    """Number of groups of the ranked latents. Each has about the same share of all firings."""
    latents: int = 5
    """How many latents, the first of the ranking, are also changed one by one."""
    seed: int = 0
    """Seed for drawing the random latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(RANKINGS, ranking=self.ranking)
        check_choice(CHANGES, change=self.change)
        check_at_least(1, spliced_tokens=self.spliced_tokens, groups=self.groups)
        check_at_least(0, latents=self.latents)
