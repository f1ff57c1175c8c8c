"""Coders of one host as coders of the other."""

from sae_binary_ext.checkpoints.transcoders import transcoder_to_saelens, transcoder_to_sparsify

__all__ = ["transcoder_to_saelens", "transcoder_to_sparsify"]
