"""Converts codes to bytes and back without loss, and measures vectors stored as bytes."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_binary_ext.coding import pack, packed_width, unpack

ZSTANDARD_LEVEL = 19
LARGEST_INT8 = 127
# Integer types of the sparse encodings. Counts of ones are _LARGE; latents are _SMALL if they fit.
_SMALL, _LARGE = np.dtype("<u2"), np.dtype("<u4")


def as_packed(packed: Tensor, latents: int) -> bytes:
    """Packed codes, uint8 [tokens, packed_width(latents)], unchanged: one bit per latent."""
    return packed.numpy().tobytes()


def from_packed(payload: bytes, tokens: int, latents: int) -> Tensor:
    """Undo as_packed; ValueError if the payload has another length."""
    found = np.frombuffer(payload, np.uint8).reshape(tokens, packed_width(latents))
    return torch.from_numpy(found.copy())


def as_sparse(packed: Tensor, latents: int) -> bytes:
    """The number of ones of each token, then the latents of all ones in order.

    A latent takes two bytes, or four if there are more than 65,536 latents.
    """
    dtype = _index_type(latents)
    active = unpack(packed, latents, torch.bool)
    counts = active.sum(1).numpy().astype(_LARGE)
    return counts.tobytes() + active.nonzero()[:, 1].numpy().astype(dtype).tobytes()


def from_sparse(payload: bytes, tokens: int, latents: int) -> Tensor:
    """Undo as_sparse, to packed codes; ValueError if the payload's length or latents do not fit."""
    dtype = _index_type(latents)
    counts = np.frombuffer(payload, _LARGE, tokens).astype(np.int64)
    latent = np.frombuffer(payload, dtype, offset=tokens * _LARGE.itemsize).astype(np.int64)
    if counts.sum() != len(latent) or (latent >= latents).any():
        raise ValueError(
            f"holds {len(latent)} ones, where {counts.sum()} of {latents} latents were counted"
        )
    active = torch.zeros(tokens, latents, dtype=torch.bool)
    active[np.repeat(np.arange(tokens), counts), latent] = True
    return pack(active)


def _index_type(latents: int) -> "np.dtype[Any]":
    return _SMALL if latents <= np.iinfo(_SMALL).max + 1 else _LARGE


@dataclass(frozen=True)
class Encoding:
    """A way to write codes to bytes.

    `write` makes the payload from packed codes and the number of latents; `read` makes packed codes
    from the payload and the numbers of tokens and latents. If `differs` is true, codes are written
    as differences from the rounded mean code. If `compressed` is true, zstandard compresses the
    payload.
    """

    write: Callable[[Tensor, int], bytes]
    read: Callable[[bytes, int, int], Tensor]
    differs: bool = False
    compressed: bool = False

    def encode(self, packed: Tensor, latents: int, mean_code: Tensor) -> bytes:
        """The payload of packed codes, uint8 [tokens, packed_width(latents)].

        mean_code, uint8 [packed_width(latents)], is the packed mean code.
        """
        payload = self.write(packed ^ mean_code if self.differs else packed, latents)
        return compressed(payload) if self.compressed else payload

    def decode(self, payload: bytes, tokens: int, latents: int, mean_code: Tensor) -> Tensor:
        """The packed codes of a payload; ValueError if its number of codes is not `tokens`."""
        if self.compressed:
            module = zstandard()
            # Check the size first, because a few bytes may claim to expand to gigabytes.
            longest = tokens * (latents + 1) * _LARGE.itemsize
            try:
                if not 0 <= module.frame_content_size(payload) <= longest:
                    raise ValueError(f"claims to expand to more than {longest} bytes")
                payload = module.ZstdDecompressor().decompress(payload)
            except module.ZstdError as error:
                raise ValueError(f"cannot be decompressed: {error}") from error
        packed = self.read(payload, tokens, latents)
        return packed ^ mean_code if self.differs else packed


# Differences from the rounded mean code are from Cho et al. (arXiv 2509.20997), whose latents may
# be active most of the time.
_PLAIN = {
    "packed": Encoding(as_packed, from_packed),
    "sparse": Encoding(as_sparse, from_sparse),
    "difference": Encoding(as_sparse, from_sparse, differs=True),
}
# Keys are the names of encodings in file headers.
ENCODINGS = _PLAIN | {
    f"{name}, zstandard": replace(plain, compressed=True) for name, plain in _PLAIN.items()
}


def zstandard() -> Any:
    """The package zstandard; ValueError if it is not installed."""
    try:
        import zstandard as module
    except ModuleNotFoundError as error:
        raise ValueError(
            "zstandard, which compresses codes, is not installed: pip install "
            "'sae_binary_ext[demo]'."
        ) from error
    return module


def compressed(payload: bytes) -> bytes:
    """A payload, compressed by zstandard."""
    return zstandard().ZstdCompressor(level=ZSTANDARD_LEVEL).compress(payload)


@dataclass(frozen=True)
class VectorFigures:
    """Bits per vector, and squared error over total variance, for each scheme."""

    bits: dict[str, float]
    fvu: dict[str, float]
    float16_bits: int


class RunningVectors:
    """Sizes and errors of vectors stored in float16 and int8, plain and compressed."""

    def __init__(self) -> None:
        self._vectors = self._width = 0
        self._bytes: defaultdict[str, int] = defaultdict(int)
        self._errors: defaultdict[str, float] = defaultdict(float)

    def add(self, vectors: Tensor) -> None:
        """Add vectors [tokens, width]."""
        vectors = vectors.to("cpu", torch.float32)
        self._vectors, self._width = self._vectors + len(vectors), vectors.shape[1]
        half = vectors.half()
        self._count("float16", half.numpy().tobytes(), half.float() - vectors)
        # Each vector is scaled by its largest element; the scale is kept in float16.
        scales = (vectors.abs().amax(1, keepdim=True) / LARGEST_INT8).half().float()
        scales = scales.clamp_min(torch.finfo(torch.float16).tiny)
        small = (vectors / scales).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)
        payload = small.numpy().tobytes() + scales.half().numpy().tobytes()
        self._count("int8", payload, small * scales - vectors)

    def _count(self, scheme: str, payload: bytes, error: Tensor) -> None:
        squared = error.double().square().sum().item()
        for name, written in ((scheme, payload), (f"{scheme}, zstandard", compressed(payload))):
            self._bytes[name] += len(written)
            self._errors[name] += squared

    def figures(self, variance: float) -> VectorFigures:
        """The figures so far; `variance` sums the squared distances of vectors from their mean."""
        bits = {name: 8 * size / self._vectors for name, size in self._bytes.items()}
        fvu = {name: error / variance for name, error in self._errors.items()}
        return VectorFigures(bits, fvu, 16 * self._width)
