"""Scripts that measure what the documentation claims. benchmarks/README.md describes the method."""

import os

import torch

# Without a GPU, sparsify's decoder must not use its Triton kernel.
if not torch.cuda.is_available():
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
