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
    return rows.split(max(FEWEST_ROWS, PART // rows.shape[1]))
