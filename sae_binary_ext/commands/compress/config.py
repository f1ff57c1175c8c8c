"""The settings of `sae-binary compress`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.settings import ActivationsFields, ReadingConfig


@dataclass
class CompressConfig(ActivationsFields, ReadingConfig):
    """
    Write hidden states to files as codes, in all schemes, and read them back. The sizes and errors
    are compared with those of the vectors themselves. The smallest file of each coder is kept.
    """

    output: Path = Path("runs/compress")
    """Folder for the files of codes (CODER.codes), compress.json and compress.html."""
    tokens: int = 50_000
    """Tokens whose hidden states are compressed."""
