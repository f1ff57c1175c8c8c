"""The settings of `sae-binary interpret`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ActivationsFields, JudgeFields

# A latent with fewer windows is not scored. At least ten silent windows are shown, because delphi's
# embedding scorer compares each question with ten of them.
FEWEST_SHOWN, FEWEST_ASKED = 10, 20
SAMPLINGS = ("random", "quantiles", "margin")
JUDGES, NEGATIVES = ("embedding", "tokens"), ("random", "hard")


@dataclass(frozen=True)
class TextAmount:
    """Amount of text to read, and how to cut it; fields are those of InterpretConfig."""

    tokens: int
    context_size: int
    first_position: int
    window: int
    latents: int

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens, window=self.window, latents=self.latents)
        check_at_least(0, first_position=self.first_position)
        if (least := self.first_position + self.window) > self.context_size:
            raise ValueError(
                f"first_position={self.first_position}: no window of {self.window} tokens fits "
                f"into context_size={self.context_size}. Give a context_size of at least {least}, "
                "or a smaller window."
            )


@dataclass
class InterpretConfig(JudgeFields, ActivationsFields):
    """
    Score how well a judge tells text in which a latent is active from other text, for binary and
    stock coders. The judge is a sentence embedding in delphi's scorer. A baseline of single tokens
    is scored too. If a language model is named, it judges by detection and fuzzing. After Ctrl-C,
    the same command continues where it stopped, and sends no request twice.
    """

    dataset: str | None = None
    """Texts: a Hub id, a file (.txt, .parquet, .json, .jsonl, .csv) or a folder of such files.
    If left out, the whole bundled Wikipedia sample, on which the demo's coders are trained."""
    output: Path = Path("runs/interpret")
    """Folder for interpretation.json, scores.jsonl, and the files of an interrupted run."""
    tokens: int = 300_000
    """How many tokens to read."""
    context_size: int = 257
    """Most tokens in a row. The default gives eight windows after the first position."""
    window: int = 32
    """Tokens in each window of text that a judge sees."""
    latents: int = 100
    """How many latents of each coder to draw at random. Dead latents are drawn too."""
    shown: int = 20
    """How many active windows of each latent a judge learns from."""
    asked: int = 40
    """How many active windows of each latent a judge is asked about, and as many silent ones."""
    sampling: str = "random"
    """How active windows are drawn: random (documents in turn), quantiles (tenths by highest
    activation in turn, delphi's default), or margin (tenths by highest pre-activation)."""
    negatives: str = "random"
    """How silent windows are drawn: random, or hard (those most similar to the active ones)."""
    judge: str = "embedding"
    """embedding takes delphi's ExampleEmbeddingScorer with MiniLM, and the token baseline. It needs
    the extra delphi. tokens takes the baseline alone."""
    judge_windows: int = 5
    """How many windows to send in one request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.amount()
        check_at_least(FEWEST_SHOWN, shown=self.shown)
        check_at_least(FEWEST_ASKED, asked=self.asked)
        self.check_judge_fields()
        check_choice(SAMPLINGS, sampling=self.sampling)
        check_choice(NEGATIVES, negatives=self.negatives)
        check_choice(JUDGES, judge=self.judge)
        if self.negatives == "hard" and self.judge == "tokens":
            raise ValueError(
                "negatives='hard': needs an embedding; judge='tokens' has none. Set "
                "negatives='random', or judge='embedding'."
            )
        check_at_least(1, judge_windows=self.judge_windows)
        if self.judge_windows > FEWEST_ASKED:
            raise ValueError(
                f"judge_windows={self.judge_windows}: give at most {FEWEST_ASKED}, because a "
                "latent may have no more windows."
            )

    def settings(self) -> "InterpretConfig":
        """Settings for a fingerprint; settings that change no score have their defaults."""
        new = InterpretConfig()
        unchanged = {"output": new.output, "judge": new.judge, "activations": None}
        return replace(self, **unchanged, device="cpu", **asdict(JudgeFields()))

    def amount(self) -> TextAmount:
        """The settings that say how much text to read, and how to cut it."""
        return TextAmount(
            self.tokens, self.context_size, self.first_position, self.window, self.latents
        )
