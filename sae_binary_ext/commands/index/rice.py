"""Positions as bits: Rice codes of the gaps between them (Rice and Plaunt 1971). Lossless.

A gap g becomes g >> bits in unary and the low `bits` bits of g as they are. All unary parts come
first, then the highest of the low bits of all gaps, and so on down to the lowest. So numpy decodes
them without a loop over gaps. If more than half of the positions are taken, the free positions are
written instead.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.uint32]


def encode(positions: Positions, size: int) -> tuple[bytes, int]:
    """The payload of sorted, different positions below `size`, and its number of low bits."""
    listed = _free(positions, size) if _is_crowded(len(positions), size) else positions
    if not len(listed):
        return b"", 0
    gaps = np.diff(listed.astype(np.int64), prepend=-1) - 1
    bits = min(_likely_bits(gaps), key=lambda each: len(gaps) * each + int((gaps >> each).sum()))
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(ends[-1] + 1, np.uint8)
    unary[ends] = 1
    planes = [(gaps >> plane & 1).astype(np.uint8) for plane in reversed(range(bits))]
    low = np.packbits(np.concatenate(planes)).tobytes() if planes else b""
    return np.packbits(unary).tobytes() + low, bits


def decode(payload: bytes | NDArray[np.uint8], count: int, bits: int, size: int) -> Positions:
    """Undo encode: `count` positions below `size`. ValueError if the payload does not fit."""
    crowded = _is_crowded(count, size)
    listed = size - count if crowded else count
    found = np.frombuffer(payload, np.uint8)
    unary_bytes = len(found) - (listed * bits + 7) // 8
    ends = np.flatnonzero(np.unpackbits(found[:unary_bytes]).view(np.bool_))
    if len(ends) != listed:
        raise ValueError(f"holds {len(ends)} positions, where {listed} were counted")
    # Before the n-th end come n other ends, and as many zeros as the gaps so far have of 2**bits.
    order = np.arange(listed)
    positions = ((ends - order) << bits) + order
    if bits:
        planes = np.unpackbits(found[unary_bytes:], count=listed * bits).reshape(bits, listed)
        low = planes[0].astype(np.uint32)
        for plane in planes[1:]:
            low <<= 1
            low |= plane
        positions += np.cumsum(low, dtype=np.int64)
    return _free(positions, size) if crowded else positions.astype(np.uint32)


def _is_crowded(count: int, size: int) -> bool:
    return 2 * count > size


def _free(positions: NDArray[Any], size: int) -> Positions:
    """The positions below `size` that are not among `positions`."""
    free = np.ones(size, np.bool_)
    free[positions] = False
    return np.flatnonzero(free).astype(np.uint32)


def _likely_bits(gaps: NDArray[Any]) -> range:
    """Numbers of low bits to try. For random positions, the best is near log2(mean gap) - 0.5."""
    middle = int(max(gaps.mean(), 1.0)).bit_length() - 1
    return range(max(middle - 1, 0), middle + 2)
