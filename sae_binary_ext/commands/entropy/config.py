"""The settings of `sae-binary entropy`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.settings import ActivationsFields, ReadingConfig


@dataclass
class EntropyConfig(ActivationsFields, ReadingConfig):
    """Measure bounds on the entropy of hidden states, in bits, from the codes of coders."""

    output: Path = Path("runs/entropy")
    """Folder for entropy.json and entropy.html."""
    tokens: int = 50_000
    """How many tokens to read. Memory holds one bit for each latent and token."""
