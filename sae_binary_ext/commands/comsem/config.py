"""The settings of `sae-binary comsem`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ActivationsFields, JudgeFields, ReadingConfig

DECODINGS = ("judge", "logit_lens")


@dataclass
class ComsemConfig(JudgeFields, ActivationsFields, ReadingConfig):
    """
    Score what the tokens of each latent have in common (ComSem). Each token is given to the latents
    that are burstiest on it. A judge sees some tokens of a latent and finds what they share. Then
    it is asked whether this fits further tokens of the latent, and an equal number of tokens of
    other latents. A language model judges if you name one; otherwise a sentence embedding judges.
    """

    output: Path = Path("runs/comsem")
    """Folder for comsem.json, comsem.html and the language model's answers."""
    tokens: int = 50_000
    """How many tokens to read. The text is read twice."""
    decode: str = "judge"
    """judge scores what tokens have in common. logit_lens asks no judge: it names latents by the
    tokens they fire on, and by the tokens their decoder rows promote through the model's final norm
    and unembedding, and tests both names on other documents."""
    latents: int = 100
    """How many latents of each coder to draw at random. Dead latents are drawn too."""
    burstiest: int = 10
    """How many latents each token is given to."""
    shown: int = 5
    """How many of a latent's tokens the judge learns from."""
    asked: int = 8
    """How many more of a latent's tokens the judge is asked about, and as many other tokens."""
    interpretable_at: float = 0.75
    """A latent counts as interpretable if at least this share of its own tokens fit. It is told
    apart if, in addition, at most one minus this share of the other tokens fit."""
    judge_url: str | None = None
    """Base URL of a language model that speaks the chat-completions protocol, without
    /chat/completions. The key is read from OPENAI_API_KEY. If left out, a sentence embedding
    judges, which needs the extra delphi."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_judge_fields()
        check_choice(DECODINGS, decode=self.decode)
        check_at_least(1, latents=self.latents, burstiest=self.burstiest, asked=self.asked)
        check_at_least(2, shown=self.shown)
        if not 0.5 < self.interpretable_at <= 1:
            raise ValueError(
                f"interpretable_at={self.interpretable_at}: give a share above 0.5, up to 1."
            )
