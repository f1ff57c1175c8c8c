"""Names in the files of the paper below, which sparsify's configs use too.

Quirke, Shabalin, Belrose, Binary Sparse Coding for Interpretability (arXiv 2509.25596).
"""

from sae_binary_ext.coding.selection import SELECTIONS
from sae_binary_ext.coding.surrogate import SURROGATES

SELECTION_OF_ACTIVATION = {kind.activation: name for name, kind in SELECTIONS.items()}
SURROGATE_OF_STE = {surrogate.ste: name for name, surrogate in SURROGATES.items()}
# sparsify's own activations, whose codes are not binary, and how we write their names.
STOCK_ACTIVATIONS = {"groupmax": "GroupMax", "topk": "TopK"}
ACTIVATIONS = (*SELECTION_OF_ACTIVATION, *STOCK_ACTIVATIONS)
# Fields of the paper's configs, each with the value that turns it off. PAPER_IDLE_FIELD has no
# effect if matryoshka is False.
PAPER_FIELDS = {"tied_decoder": False, "matryoshka": False}
PAPER_IDLE_FIELD = "matryoshka_groups"
