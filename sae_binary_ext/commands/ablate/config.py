"""The settings of `sae-binary ablate`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ReadingConfig

RANKINGS, CHANGES = ("burstiness", "rate", "effect", "score"), ("zero", "flip")


@dataclass
class AblateConfig(ReadingConfig):
    """Silence or flip latents; compare the rise of error and loss with that of random latents."""

    output: Path = Path("runs/ablate")
    """Folder for ablate.json and ablate.html."""
    tokens: int = 30_000
    """How many tokens to read for the firing rates and the ranking."""
    spliced_tokens: int = 3_000
    """How many of these tokens to measure changes on. Their rows are spread over the text."""
    ranking: str = "effect"
    """Order of the latents: effect (norm of the decoder row times the code's standard deviation),
    rate (firing rate), burstiness (rarity of the latent's rarer state), or score (a judge's score,
    from the file that scores names; only latents with a score are in groups)."""
    scores: Path | None = None
    """File scores.jsonl of a sae-binary interpret run on these coders, for the ranking score."""
    judge: str | None = None
    """Judge whose scores rank the latents. It may be left out if the file has one judge alone."""
    change: str = "zero"
    """zero silences latents; flip turns 0 to 1 and 1 to 0, for binary coders only."""
    groups: int = 8
    """Number of groups of ranked latents. Each has an equal share of all firings, if possible."""
    latents: int = 5
    """How many of the first latents of the ranking to change one by one as well."""
    seed: int = 0
    """Seed for drawing the random latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(RANKINGS, ranking=self.ranking)
        check_choice(CHANGES, change=self.change)
        if self.ranking == "score" and self.scores is None:
            raise ValueError(
                "scores=None: ranking='score' ranks by a judge's scores. Set scores to the "
                "scores.jsonl of a run of sae-binary interpret, or choose another ranking."
            )
        if self.ranking != "score" and (self.scores, self.judge) != (None, None):
            raise ValueError(
                f"ranking={self.ranking!r}: takes no scores and no judge ({self.scores}, "
                f"{self.judge}). Set ranking='score', or leave both out."
            )
        check_at_least(1, spliced_tokens=self.spliced_tokens, groups=self.groups)
        check_at_least(0, latents=self.latents)
