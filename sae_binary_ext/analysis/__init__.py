"""What can be learned from trained binary coders, and made better of them."""

from sae_binary_ext.analysis.least_squares import DecoderFit
from sae_binary_ext.analysis.refit import Refitted, refit, refit_decoder
from sae_binary_ext.analysis.text import Text, read_activations

__all__ = [
    "DecoderFit",
    "Refitted",
    "Text",
    "read_activations",
    "refit",
    "refit_decoder",
]
