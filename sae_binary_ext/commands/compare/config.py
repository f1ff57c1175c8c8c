"""The settings of `sae-binary compare`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.settings import Amount, TextConfig


@dataclass
class CompareConfig(TextConfig):
    """
    Measure coders of either host and any format on the same tokens of the same model: what they
    keep, what the model loses with them in place, and how their latents fire. Ctrl-C and the
    same command again: it goes on where it was.
    """

    output: Path = Path("runs/compare")
    """Folder for report.html, metrics.json, metrics.csv, and what an interrupted run goes on
    from."""
    spliced_tokens: int = 10_000
    """Of these, tokens on which each coder's output is put into the model."""
    latents: int = 200
    """Latents of each coder in the report's browser, drawn at random."""
    interpretation: Path | None = None
    """Folder of a run of sae-binary interpret on these coders: the report shows its scores, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.amount()

    def amount(self) -> Amount:
        """How much text is used."""
        return Amount(
            self.tokens,
            self.spliced_tokens,
            self.context_size,
            self.first_position,
            self.latents,
        )
