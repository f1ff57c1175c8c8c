"""The settings of `sae-binary steer`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_positive
from sae_binary_ext.settings import ReadingConfig


@dataclass
class SteerConfig(ReadingConfig):
    """
    Set, clear or flip latents of a coder while the model generates, and show the text before and
    after. With --measure, turn on random latents of each coder one by one instead, and measure what
    this does to the next token. After Ctrl-C, the same measurement continues where it stopped.
    """

    output: Path = Path("runs/steer")
    """Folder for steer.json and steer.html, and for the scores of an interrupted measurement."""
    prompt: str | None = None
    """Text that the model continues."""
    set: list[int] = field(default_factory=list)
    """Latents to turn on."""
    clear: list[int] = field(default_factory=list)
    """Latents to turn off."""
    flip: list[int] = field(default_factory=list)
    """Latents to turn on where they are silent, and off where they are active."""
    where: str | None = None
    """Change only tokens on which this rule holds: latents joined by &, with ! before a latent that
    must be silent, as in '1203 & !7'. The quotes keep the shell from reading it."""
    strength: float | None = None
    """The activation of a latent that is on, for coders with values. Binary coders take none."""
    first_position: int = 1
    """Change tokens from this position on. The prompt's first token, at position 0, is the
    beginning-of-text token, on which most models have an attention sink."""
    new_tokens: int = 40
    """Most tokens to generate."""
    temperature: float = 0.0
    """Temperature of sampling. 0 takes the likeliest token."""
    seed: int = 0
    """Seed of the sampled tokens, and of the latents that --measure draws."""
    measure: int = 0
    """How many random live latents of each coder to turn on one by one. If 0, generate text."""
    tokens: int = 25_000
    """How many tokens to read with --measure, for the tokens that latents fire on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, new_tokens=self.new_tokens)
        check_at_least(0, temperature=self.temperature, measure=self.measure)
        if self.strength is not None:
            check_positive(strength=self.strength)
