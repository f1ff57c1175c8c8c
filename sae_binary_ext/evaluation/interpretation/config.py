"""The settings of `sae-binary interpret`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.coding.checks import check_at_least, check_choice
from sae_binary_ext.evaluation.interpretation.examples import FEWEST_ASKED, SAMPLINGS, Counts
from sae_binary_ext.evaluation.interpretation.judge_config import JudgeFields
from sae_binary_ext.evaluation.interpretation.reading import TextAmount
from sae_binary_ext.evaluation.text_config import TextConfig

JUDGES = ("embedding", "tokens")
NEGATIVES = ("random", "hard")


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
