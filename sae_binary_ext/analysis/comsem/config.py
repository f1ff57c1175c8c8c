"""The settings of `sae-binary comsem`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.analysis.reading import ReadingConfig


@dataclass
class ComsemConfig(ReadingConfig):
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
    judge_model: str | None = None
    """Its name there."""
    judge_tokens: int = 10_000_000
    """Tokens, read and written, after which it is asked nothing more."""
    judge_parallel: int = 8
    """Requests at once."""
    judge_timeout: float = 120.0
    """Seconds to wait for an answer."""
    judge_retries: int = 5
    """Of a request that failed on its way, or that the server put off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, fewest in (
            ("latents", 1),
            ("burstiest", 1),
            ("shown", 2),
            ("asked", 1),
            ("judge_tokens", 1),
            ("judge_parallel", 1),
            ("judge_retries", 0),
        ):
            if getattr(self, name) < fewest:
                raise ValueError(
                    f"{name}={getattr(self, name)}: give a number of at least {fewest}."
                )
        if not self.judge_timeout > 0:
            raise ValueError(f"judge_timeout={self.judge_timeout}: give a number above 0.")
        if not 0.5 < self.interpretable_at <= 1:
            raise ValueError(
                f"interpretable_at={self.interpretable_at}: give a share above 0.5, up to 1."
            )
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url, judge_model: give both, or neither.")
