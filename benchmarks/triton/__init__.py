"""Triton kernels for products with codes. Each has a torch twin, which is its reference.

No coder uses these kernels yet. In Triton's interpreter, the kernels agree with their twins. They
compile for NVIDIA's compute capability 9.0. benchmarks/gpu.py measures whether they are faster.
"""

from benchmarks.triton.covariances import covariance_signs, signed_sums
from benchmarks.triton.picking import pack_bits, pick_largest
from benchmarks.triton.row_sums import row_dots, row_sums, segment_sums

__all__ = [
    "covariance_signs",
    "pack_bits",
    "pick_largest",
    "row_dots",
    "row_sums",
    "segment_sums",
    "signed_sums",
]
