"""Triton kernels for products with codes. Each has a torch twin, which is its reference.

A coder on a GPU uses those that processor.PATHS names: none, until benchmarks/gpu.py has measured
which are faster. In Triton's interpreter, the kernels agree with their twins. They compile for
NVIDIA's compute capability 9.0. No entry of PATHS names covariance_signs and signed_sums yet.
"""

from sae_binary_ext.coding.kernels.triton.covariances import covariance_signs, signed_sums
from sae_binary_ext.coding.kernels.triton.picking import pack_bits, pick_largest
from sae_binary_ext.coding.kernels.triton.row_sums import row_dots, row_sums, segment_sums

__all__ = [
    "covariance_signs",
    "pack_bits",
    "pick_largest",
    "row_dots",
    "row_sums",
    "segment_sums",
    "signed_sums",
]
