"""A few tokens at a time, so that what one operation leaves is still in cache for the next."""

from torch import Tensor

# Entries of a part, 2 MB in float32, and its fewest rows: calls have their price too.
PART = 2**19
FEWEST_ROWS = 64


def cached_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Views of a few rows each of [tokens, latents]; one of all rows on a GPU, where a launch costs
    more than memory does.
    """
    if rows.device.type != "cpu":
        return (rows,)
    return rows.split(rows_of_part(rows.shape[1]))


def rows_of_part(latents: int) -> int:
    """How many rows a whole part has."""
    return max(FEWEST_ROWS, PART // latents)
