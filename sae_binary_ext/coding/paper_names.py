"""What the first paper's files say, and sparsify's configs after them.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

SELECTION_OF_ACTIVATION = {
    "topk_binary": "topk",
    "groupmax_binary": "groupmax",
    "gumbel_binary": "gumbel",
    "binary": "threshold",
}
# sparsify's own, whose latents have values.
STOCK_ACTIVATIONS = ("groupmax", "topk")
ACTIVATIONS = (*SELECTION_OF_ACTIVATION, *STOCK_ACTIVATIONS)
SURROGATE_OF_STE = {
    "sigmoid": "sigmoid",
    "rectangle": "rectangle",
    "re": "reste",
    "identity": "identity",
}
# Fields that this package does not implement, with the value that changes nothing; the last is idle
# while the one before it is off.
PAPER_FIELDS = {"tied_decoder": False, "matryoshka": False}
PAPER_IDLE_FIELD = "matryoshka_groups"
