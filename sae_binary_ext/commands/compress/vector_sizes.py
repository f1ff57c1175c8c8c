"""Size and error of hidden states as vectors of few bits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_binary_ext.commands.compress.code_encodings import ZSTANDARD_LEVEL, zstandard

LARGEST_INT8 = 127


@dataclass(frozen=True)
class VectorFigures:
    """Bits and errors of a stream of vectors.

    Attributes:
        bits: bits per vector in each scheme.
        fvu: squared error over total variance in each scheme.
        float16_bits: bits of a vector in float16.
    """

    bits: dict[str, float]
    fvu: dict[str, float]
    float16_bits: int


class RunningVectors:
    """Sizes and errors of a stream of vectors in float16 and int8, plain and compressed."""

    def __init__(self) -> None:
        self._vectors = self._width = 0
        self._bytes: dict[str, int] = {}
        self._errors: dict[str, float] = {}

    def add(self, vectors: Tensor) -> None:
        """Count vectors [tokens, width]."""
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
        compressed = zstandard().ZstdCompressor(level=ZSTANDARD_LEVEL).compress(payload)
        squared = error.double().square().sum().item()
        for name, size in ((scheme, len(payload)), (f"{scheme}, zstandard", len(compressed))):
            self._bytes[name] = self._bytes.get(name, 0) + size
            self._errors[name] = self._errors.get(name, 0.0) + squared

    def figures(self, variance: float) -> VectorFigures:
        """The figures so far; variance sums the squared distances of vectors from their mean."""
        bits = {name: 8 * size / self._vectors for name, size in self._bytes.items()}
        fvu = {name: error / variance for name, error in self._errors.items()}
        return VectorFigures(bits, fvu, 16 * self._width)
