"""The settings of `sae-binary interpret`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import JudgeFields, TextConfig

# With fewer windows to learn from, or to be asked about, a latent is not scored: delphi's
# embedding scorer draws ten of the silent ones to compare with.
FEWEST_SHOWN, FEWEST_ASKED = 10, 20
SAMPLINGS = ("random", "quantiles", "margin")
JUDGES = ("embedding", "tokens")
NEGATIVES = ("random", "hard")


@dataclass(frozen=True)
class Counts:
    """How many windows of a latent are used.

    Attributes:
        shown: active ones to learn from, and silent ones likewise.
        asked: active ones to ask about, and silent ones likewise.
    """

    shown: int = 20
    asked: int = 40

    def __post_init__(self) -> None:
        check_at_least(FEWEST_SHOWN, shown=self.shown)
        check_at_least(FEWEST_ASKED, asked=self.asked)


@dataclass(frozen=True)
class TextAmount:
    """How much text is read, and how it is cut.

    Attributes:
        tokens: read, at least; the last batch is finished.
        context_size: tokens a row at most, the beginning-of-text token included.
        first_position: positions before it are left out: most models have an attention sink at 0.
        window: tokens of a stretch of text that is shown to a judge.
        latents: of each coder, how many are drawn at random.
    """

    tokens: int
    context_size: int
    first_position: int
    window: int
    latents: int

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens, window=self.window, latents=self.latents)
        check_at_least(0, first_position=self.first_position)
        if self.first_position + self.window > self.context_size:
            raise ValueError(
                f"first_position={self.first_position}: no window of {self.window} tokens is left "
                f"of context_size={self.context_size}. Give a context_size of at least "
                f"{self.first_position + self.window}, or a smaller window."
            )


@dataclass
class InterpretConfig(JudgeFields, TextConfig):
    """
    How well latents of coders, binary or stock, can be told from the text they are active in. A
    sentence embedding judges, in delphi's scorer, beside a baseline of single tokens; and a
    language model, by detection and fuzzing, where one is named. Ctrl-C and the same command
    again: it goes on where it was, and asks nothing twice.
    """

    dataset: str | None = None
    """Texts: a Hub id, a file (.txt, .parquet, .json, .jsonl, .csv) or a folder of such files.
    Without it the whole embedded Wikipedia sample, which the demo's coders are trained on."""
    output: Path = Path("runs/interpret")
    """Folder for interpretation.json, scores.jsonl, and what an interrupted run goes on from."""
    tokens: int = 300_000
    """Tokens to read."""
    context_size: int = 257
    """Tokens a row at most: eight windows after the first position."""
    window: int = 32
    """Tokens of a stretch of text that a judge sees."""
    latents: int = 100
    """Latents of each coder, drawn at random, dead ones too."""
    shown: int = 20
    """Of each latent, windows in which it is active that a judge learns from."""
    asked: int = 40
    """Of each latent, windows in which it is active that a judge is asked about; as many silent."""
    sampling: str = "random"
    """Of active windows: random (documents in turn), quantiles (tenths by highest activation in
    turn, delphi's default), or margin (tenths by highest pre-activation)."""
    negatives: str = "random"
    """Of silent windows: random, or hard (those that read most like the active ones)."""
    judge: str = "embedding"
    """embedding (delphi's ExampleEmbeddingScorer with MiniLM, and the token baseline; needs the
    extra delphi), or tokens (the baseline alone)."""
    judge_windows: int = 5
    """Windows in one request."""

    def __post_init__(self) -> None:
        self.text_source()
        self.amount()
        self.counts()
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
                f"judge_windows={self.judge_windows}: give {FEWEST_ASKED} at most; a latent may "
                "have no more."
            )

    def settings(self) -> "InterpretConfig":
        """What decides a judge's score: neither where it runs nor who else is asked."""
        own = ("model", "dataset", "hook", "tokens", "context_size", "first_position", "window")
        own += ("split", "text_column")
        more = ("latents", "shown", "asked", "sampling", "negatives", "judge_windows")
        return InterpretConfig(**{name: getattr(self, name) for name in own + more})

    def amount(self) -> TextAmount:
        """How much text is read."""
        return TextAmount(
            self.tokens, self.context_size, self.first_position, self.window, self.latents
        )

    def counts(self) -> Counts:
        """How many windows a latent is judged by."""
        return Counts(self.shown, self.asked)
