"""A few tokens at a time, so that what one operation leaves is still in cache for the next."""

from torch import Tensor

from sae_binary_ext.coding.kernels.processor import works_in_parts

# Entries of a part, 2 MB in float32, and its fewest rows: calls have their price too.
PART = 2**19
FEWEST_ROWS = 64


def cached_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows each of [tokens, latents]; on a GPU one view of all rows."""
    return rows.split(rows_of_part(rows.shape[1])) if works_in_parts(rows) else (rows,)


def rows_of_part(latents: int) -> int:
    """How many rows a whole part has."""
    return max(FEWEST_ROWS, PART // latents)
