"""The settings of `sae-binary comsem`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.settings import JudgeFields, ReadingConfig


@dataclass
class ComsemConfig(JudgeFields, ReadingConfig):
    """
    What the tokens have in common on which a latent stands out (ComSem): each token is given to
    the latents that are burstiest on it; of a latent's tokens some tell a judge what they share,
    and others, with as many that are not its own, ask whether that fits. A language model judges
    where one is named, a sentence embedding otherwise.
    """

    output: Path = Path("runs/comsem")
    """Folder for comsem.json, comsem.html and the language model's answers."""
    tokens: int = 50_000
    """Tokens to read, twice."""
    latents: int = 100
    """Latents of each coder, drawn at random, dead ones too."""
    burstiest: int = 10
    """Latents that a token is given to."""
    shown: int = 5
    """Of a latent's tokens, how many a judge learns from."""
    asked: int = 8
    """Of its other tokens, how many a judge is asked about; and as many that are not its own."""
    interpretable_at: float = 0.75
    """Share of its own tokens that must fit for a latent to count as interpretable; where
    negatives count, at most one less this share of the others may fit."""
    judge_url: str | None = None
    """Of a language model behind the chat-completions protocol, up to and without
    /chat/completions. Its key is read from OPENAI_API_KEY. Without it a sentence embedding judges,
    which needs the extra delphi."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_judge_fields()
        check_at_least(1, latents=self.latents, burstiest=self.burstiest, asked=self.asked)
        check_at_least(2, shown=self.shown)
        if not 0.5 < self.interpretable_at <= 1:
            raise ValueError(
                f"interpretable_at={self.interpretable_at}: give a share above 0.5, up to 1."
            )
