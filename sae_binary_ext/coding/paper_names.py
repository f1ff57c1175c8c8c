"""What the first paper's files call selections and surrogates, as sparsify's configs do.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

SELECTION_OF_ACTIVATION = {
    "topk_binary": "topk",
    "groupmax_binary": "groupmax",
    "gumbel_binary": "gumbel",
    "binary": "threshold",
}
SURROGATE_OF_STE = {
    "sigmoid": "sigmoid",
    "rectangle": "rectangle",
    "re": "reste",
    "identity": "identity",
}
