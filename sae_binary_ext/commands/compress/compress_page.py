"""The page of `sae-binary compress`: what it shows of each result."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sae_binary_ext.commands.compress.config import CompressConfig
from sae_binary_ext.commands.compress.vector_sizes import VectorFigures
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves


@dataclass(frozen=True)
class Compressed:
    """A coder's figures, the bytes of its file in each encoding, and the smallest file."""

    candidate: Candidate
    figures: CoderFigures
    sizes: dict[str, int]
    kept: Path

    @property
    def bits(self) -> dict[str, float]:
        """Bits per vector in each encoding."""
        return {encoding: 8 * size / self.figures.tokens for encoding, size in self.sizes.items()}


@dataclass(frozen=True)
class Scheme:
    """One row of the table: a way to store the hidden states."""

    what: str
    scheme: str
    bits: float
    float16_bits: int
    fvu: float


TEXTS = Path(__file__).with_name("page.toml")
COLUMNS: tuple[Column[Scheme], ...] = (
    Column("what", key="what"),
    Column("scheme", key="scheme"),
    Column("bits a vector", form=",.0f", key="bits"),
    Column("of float16", form=".1%", value=lambda s: s.bits / s.float16_bits),
    Column("FVU", form=".2g", key="fvu"),
)


def compress_page(
    found: tuple[dict[Site, VectorFigures], list[Compressed]], config: CompressConfig
) -> Analysis:
    """Table, plot and remarks."""
    vectors, compressed = found
    return analysis_of(
        TEXTS,
        COLUMNS,
        _schemes(vectors, compressed),
        {"FVU by bits": _by_bits(vectors, compressed)},
        {
            "vectors": {str(site): vars(figures) for site, figures in vectors.items()},
            "coders": [_described(each) for each in compressed],
        },
    )


def _schemes(vectors: dict[Site, VectorFigures], compressed: list[Compressed]) -> Iterator[Scheme]:
    for found in vectors.values():
        for scheme, bits in found.bits.items():
            yield Scheme("vectors", scheme, bits, found.float16_bits, found.fvu[scheme])
    for each in compressed:
        figures, float16 = each.figures, 16 * each.candidate.d_out
        for scheme, bits in (each.bits | {"entropy (no file)": figures.entropy_bits.value}).items():
            yield Scheme(each.candidate.name, scheme, bits, float16, figures.fvu.value)


def _described(each: Compressed) -> dict[str, Any]:
    return {
        "name": each.candidate.name,
        "latents": each.figures.latents,
        "vectors": each.figures.tokens,
        "fvu": each.figures.fvu,
        "l0": each.figures.l0,
        "entropy_bits": each.figures.entropy_bits,
        "bits": each.bits,
        "file": each.kept.name,
    }


def _by_bits(vectors: dict[Site, VectorFigures], compressed: list[Compressed]) -> go.Figure:
    points = {
        "vectors" if len(vectors) == 1 else f"vectors at {site}": [
            (bits, found.fvu[scheme], scheme) for scheme, bits in found.bits.items()
        ]
        for site, found in vectors.items()
    }
    points |= {
        each.candidate.name: [
            (bits, each.figures.fvu.value, scheme) for scheme, bits in each.bits.items()
        ]
        for each in compressed
    }
    figure = curves(points, "bits a vector", "FVU", mode="markers", marker_size=10)
    figure.update_xaxes(type="log", dtick="D2")
    return figure.update_yaxes(type="log", dtick=1, exponentformat="power")
