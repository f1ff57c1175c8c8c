"""Forms of codes that give the plain mathematics' results and gradients at less cost."""

from sae_binary_ext.coding.forms.encoded import Encoded, encode_batch, encode_codes
from sae_binary_ext.coding.forms.picked import (
    encode_indices,
    encode_picks,
    infer_indices,
    infer_packed,
    picks_indices,
)
from sae_binary_ext.coding.forms.refining import refine

__all__ = ["Encoded", "encode_batch", "encode_codes", "encode_indices", "encode_picks"]
__all__ += ["infer_indices", "infer_packed", "picks_indices", "refine"]
