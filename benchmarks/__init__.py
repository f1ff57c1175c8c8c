"""Scripts behind the measured claims; README.md here says how they measure."""

import os

import torch

# Without a GPU, sparsify's own decoder must be told not to be a Triton kernel.
if not torch.cuda.is_available():
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
