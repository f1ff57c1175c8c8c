"""The settings of `sae-binary entropy`."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.settings import ReadingConfig


@dataclass
class EntropyConfig(ReadingConfig):
    """
    The entropy of hidden states in bits, as the codes of coders have it: from firing rates over
    all the text, as if latents were independent, beside bounds that admit dependence.
    """

    output: Path = Path("runs/entropy")
    """Folder for entropy.json and entropy.html."""
    tokens: int = 50_000
    """Tokens to read. A bit a latent and token is kept in memory."""
