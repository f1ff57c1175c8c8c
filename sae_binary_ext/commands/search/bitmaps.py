"""Bitmaps of pyroaring, made of numpy's arrays and back."""

from array import array

import numpy as np
from numpy.typing import NDArray

try:
    from pyroaring import BitMap
except ModuleNotFoundError as error:
    raise ImportError(
        "needs the package pyroaring, which has the bitmaps: pip install 'sae_binary_ext[search]'."
    ) from error

__all__ = ["BitMap", "Numbers", "bitmap_of", "numbers_of"]
Numbers = NDArray[np.int64]


def bitmap_of(numbers: NDArray[np.integer]) -> BitMap:
    """The bitmap of some numbers, which are below 2**32."""
    # pyroaring copies an array of the standard library as a whole, and numpy's number by number.
    whole = array("I")
    whole.frombytes(np.asarray(numbers, np.uint32).tobytes())
    return BitMap(whole)


def numbers_of(bitmap: BitMap) -> Numbers:
    """The members of a bitmap in order, int64."""
    return np.frombuffer(bitmap.to_array(), np.uint32).astype(np.int64)
