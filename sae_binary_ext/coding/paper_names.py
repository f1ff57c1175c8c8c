"""Names in the first paper's files, which sparsify's configs share.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

from sae_binary_ext.coding.selection import SELECTIONS
from sae_binary_ext.coding.surrogate import SURROGATES

SELECTION_OF_ACTIVATION = {kind.activation: name for name, kind in SELECTIONS.items()}
SURROGATE_OF_STE = {surrogate.ste: name for name, surrogate in SURROGATES.items()}
# sparsify's own activations, whose latents have values, and how we write them.
STOCK_ACTIVATIONS = {"groupmax": "GroupMax", "topk": "TopK"}
ACTIVATIONS = (*SELECTION_OF_ACTIVATION, *STOCK_ACTIVATIONS)
# Fields that this package does not implement, with the value that changes nothing. The last field
# has no effect while the one before it is off.
PAPER_FIELDS = {"tied_decoder": False, "matryoshka": False}
PAPER_IDLE_FIELD = "matryoshka_groups"
