"""General kernels: matrix products, top-k search, sums over ranks, seeded random draws."""

from sae_binary_ext.coding.kernels.ranks import gather_rows, sum_over_ranks
from sae_binary_ext.coding.kernels.seeding import seeded
from sae_binary_ext.coding.kernels.sparse import Picks

__all__ = ["Picks", "gather_rows", "seeded", "sum_over_ranks"]
