"""The settings of `sae-binary compare`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.settings import ActivationsFields


@dataclass
class CompareConfig(ActivationsFields):
    """
    Measure coders of either host and any format on the same tokens of the same model: their
    reconstruction, the model's loss with their outputs in place, and how their latents fire.
    After Ctrl-C, the same command continues where it stopped.
    """

    output: Path = Path("runs/compare")
    """Folder for report.html, metrics.json, metrics.csv, and the file of an interrupted run."""
    spliced_tokens: int = 10_000
    """How many of the tokens run through the model with each coder's output in place, also if the
    activations come from a file."""
    latents: int = 200
    """How many latents of each coder the report shows with their text, drawn at random."""
    interpretation: Path | None = None
    """Folder of a sae-binary interpret run on these coders, whose scores the report shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, spliced_tokens=self.spliced_tokens, latents=self.latents)
