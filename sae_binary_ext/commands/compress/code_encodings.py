"""Codes of several tokens as bytes, and back, without loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_binary_ext.coding import pack, packed_width, unpack

ZSTANDARD_LEVEL = 19
# Of the sparse encodings: a number of ones a token, and of each one its latent.
_SMALL, _LARGE = np.dtype("<u2"), np.dtype("<u4")


def as_packed(packed: Tensor, latents: int) -> bytes:
    """Packed codes, uint8 [tokens, packed_width(latents)], as they are: a bit a latent."""
    return packed.numpy().tobytes()


def from_packed(payload: bytes, tokens: int, latents: int) -> Tensor:
    """The codes of as_packed.

    Raises:
        ValueError: the payload is of another length.
    """
    found = np.frombuffer(payload, np.uint8).reshape(tokens, packed_width(latents))
    return torch.from_numpy(found.copy())


def as_sparse(packed: Tensor, latents: int) -> bytes:
    """Of each token the number of ones, then of all of them in order the latents: two bytes each,
    or four where there are more than 65,536 latents."""
    dtype = _index_type(latents)
    active = unpack(packed, latents, torch.bool)
    counts = active.sum(1).numpy().astype(_LARGE)
    return counts.tobytes() + active.nonzero()[:, 1].numpy().astype(dtype).tobytes()


def from_sparse(payload: bytes, tokens: int, latents: int) -> Tensor:
    """The codes of as_sparse, packed.

    Raises:
        ValueError: the payload is of another length, or names latents that there are not.
    """
    dtype = _index_type(latents)
    counts = np.frombuffer(payload, _LARGE, tokens).astype(np.int64)
    latent = np.frombuffer(payload, dtype, offset=tokens * _LARGE.itemsize).astype(np.int64)
    if counts.sum() != len(latent) or (latent >= latents).any():
        raise ValueError(
            f"{len(latent)} ones for {counts.sum()}, or of more than {latents} latents"
        )
    active = torch.zeros(tokens, latents, dtype=torch.bool)
    active[np.repeat(np.arange(tokens), counts), latent] = True
    return pack(active)


def _index_type(latents: int) -> "np.dtype[Any]":
    return _SMALL if latents <= np.iinfo(_SMALL).max + 1 else _LARGE


@dataclass(frozen=True)
class Encoding:
    """A way to write codes down.

    Attributes:
        write: of packed codes and their latents, the payload.
        read: of a payload, its tokens and latents, the packed codes.
        differs: whether codes are written as their differences from the rounded mean code.
        compressed: whether the payload is compressed with zstandard.
    """

    write: Callable[[Tensor, int], bytes]
    read: Callable[[bytes, int, int], Tensor]
    differs: bool = False
    compressed: bool = False

    def encode(self, packed: Tensor, latents: int, mean_code: Tensor) -> bytes:
        """The payload of packed codes, uint8 [tokens, packed_width(latents)].

        Args:
            packed: the codes.
            latents: how many.
            mean_code: uint8 [packed_width(latents)], the packed code that differences are from.
        """
        payload = self.write(packed ^ mean_code if self.differs else packed, latents)
        if not self.compressed:
            return payload
        return zstandard().ZstdCompressor(level=ZSTANDARD_LEVEL).compress(payload)

    def decode(self, payload: bytes, tokens: int, latents: int, mean_code: Tensor) -> Tensor:
        """The packed codes of a payload.

        Raises:
            ValueError: it is not one of so many tokens and latents.
        """
        if self.compressed:
            module = zstandard()
            # A few bytes may claim to be gigabytes.
            longest = tokens * (latents + 1) * _LARGE.itemsize
            try:
                if not 0 <= module.frame_content_size(payload) <= longest:
                    raise ValueError(f"claims to be more than {longest} bytes")
                payload = module.ZstdDecompressor().decompress(payload)
            except module.ZstdError as error:
                raise ValueError(f"cannot be decompressed: {error}") from error
        packed = self.read(payload, tokens, latents)
        return packed ^ mean_code if self.differs else packed


# By the name that files have it under. The differences from the rounded mean code are the second
# paper's (Cho et al., arXiv 2509.20997), where latents may be active most of the time.
ENCODINGS = {
    "packed": Encoding(as_packed, from_packed),
    "sparse": Encoding(as_sparse, from_sparse),
    "difference": Encoding(as_sparse, from_sparse, differs=True),
    "packed, zstandard": Encoding(as_packed, from_packed, compressed=True),
    "sparse, zstandard": Encoding(as_sparse, from_sparse, compressed=True),
    "difference, zstandard": Encoding(as_sparse, from_sparse, differs=True, compressed=True),
}


def zstandard() -> Any:
    """The package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import zstandard as module
    except ModuleNotFoundError as error:
        raise ValueError(
            "zstandard is not installed, which compresses codes: pip install "
            "'sae_binary_ext[demo]'."
        ) from error
    return module
