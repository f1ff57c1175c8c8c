"""topk: the k largest margins of a token may fire, so L0 is at most k.

Quirke et al. (arXiv 2509.25596).
"""

from sae_binary_ext.coding.kernels.largest import largest
from sae_binary_ext.coding.selections import Selection

TOPK = Selection("topk", activation="topk_binary", pick=largest, picks_largest=True)
