"""The settings of `sae-binary index`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.settings import ActivationsFields, ReadingConfig


@dataclass
class IndexConfig(ActivationsFields, ReadingConfig):
    """
    Write the tokens on which each latent fires to an index of a text, for `sae-binary search`. A
    latent of a stock coder fires where its value is not 0. If OUT is already an index, the text is
    added to it. After Ctrl-C, the same command continues where it stopped.
    """

    # simple-parsing makes no option of this field, because the command takes OUT in its place.
    output: Path = field(default=Path("runs/index"), metadata={"cmd": False})
    tokens: int = 100_000
    """How many tokens of the text to index, counted from its beginning. A larger number later
    indexes more of the same text."""
