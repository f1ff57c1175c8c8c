"""Positions as bits: Rice codes of the gaps between them (Rice and Plaunt 1971). Lossless.

A gap g becomes g >> bits in unary and the low `bits` bits of g as they are. All unary parts come
first, and then all low bits, so that numpy decodes them without a loop. If more than half of the
positions are taken, the free positions are written instead.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.uint32]
WORD = 32


def encode(positions: Positions, size: int) -> tuple[bytes, int]:
    """The payload of sorted, different positions below `size`, and its number of low bits."""
    listed = _free(positions, size) if _is_crowded(len(positions), size) else positions
    if not len(listed):
        return b"", 0
    gaps = np.diff(listed.astype(np.int64), prepend=-1) - 1
    bits = min(_likely_bits(gaps), key=lambda each: len(gaps) * each + int((gaps >> each).sum()))
    ends = np.cumsum((gaps >> bits) + 1)
    unary = np.zeros(ends[-1], np.uint8)
    unary[ends - 1] = 1
    words = gaps.astype(f">u{WORD // 8}").view(np.uint8).reshape(len(gaps), WORD // 8)
    low = np.unpackbits(words, axis=1)[:, WORD - bits :]
    return np.packbits(unary).tobytes() + np.packbits(low).tobytes(), bits


def decode(payload: bytes | memoryview, count: int, bits: int, size: int) -> Positions:
    """Undo encode: `count` positions below `size`. ValueError if the payload does not fit."""
    crowded = _is_crowded(count, size)
    listed = size - count if crowded else count
    low_bytes = (listed * bits + 7) // 8
    found = np.frombuffer(payload, np.uint8)
    unary, packed = np.split(found, [len(found) - low_bytes])
    ends = np.flatnonzero(np.unpackbits(unary).view(np.bool_))
    if len(ends) != listed:
        raise ValueError(f"holds {len(ends)} positions, where {listed} were counted")
    low = np.zeros((listed, WORD), np.uint8)
    if bits:
        flat = np.unpackbits(packed, count=listed * bits)
        low[:, WORD - bits :] = flat.reshape(listed, bits)
    words = np.packbits(low, axis=1).view(f">u{WORD // 8}")[:, 0].astype(np.int64)
    gaps = ((np.diff(ends, prepend=-1) - 1) << bits) | words
    positions = (np.cumsum(gaps + 1) - 1).astype(np.uint32)
    return _free(positions, size) if crowded else positions


def _is_crowded(count: int, size: int) -> bool:
    return 2 * count > size


def _free(positions: Positions, size: int) -> Positions:
    """The positions below `size` that are not among `positions`."""
    free = np.ones(size, np.bool_)
    free[positions] = False
    return np.flatnonzero(free).astype(np.uint32)


def _likely_bits(gaps: NDArray[Any]) -> range:
    """Numbers of low bits to try. For random positions, the best is near log2(mean gap) - 0.5."""
    middle = int(max(gaps.mean(), 1.0)).bit_length() - 1
    return range(max(middle - 1, 0), middle + 2)
