"""The page of `sae-binary compress`: its table and plot."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from sae_binary_ext.commands.compress.code_encodings import VectorFigures
from sae_binary_ext.commands.compress.config import CompressConfig
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.report import Analysis, Column, analysis_of
from sae_binary_ext.report.plots import curves, grouped

ENTROPY = "entropy (no file)"


@dataclass(frozen=True)
class Compressed:
    """A coder, its figures, its bits per vector in each encoding, and the smallest file."""

    candidate: Candidate
    figures: CoderFigures
    bits: dict[str, float]
    kept: Path


@dataclass(frozen=True)
class Scheme:
    """A way to store the hidden states: one row of the table, and one point of a curve."""

    what: str
    curve: str
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
    """Make the page: its table, plot and remarks."""
    vectors, compressed = found
    schemes = list(_schemes(vectors, compressed))
    results = {
        "vectors": {str(site): vars(figures) for site, figures in vectors.items()},
        "coders": [
            {
                "name": each.candidate.name,
                "latents": each.figures.latents,
                "vectors": each.figures.tokens,
                "fvu": each.figures.fvu,
                "l0": each.figures.l0,
                "entropy_bits": each.figures.entropy_bits,
                "bits": each.bits,
                "file": each.kept.name,
            }
            for each in compressed
        ],
    }
    return analysis_of(TEXTS, COLUMNS, schemes, {"FVU by bits": _by_bits(schemes)}, results)


def _schemes(vectors: dict[Site, VectorFigures], compressed: list[Compressed]) -> Iterator[Scheme]:
    for site, found in vectors.items():
        curve = "vectors" if len(vectors) == 1 else f"vectors at {site}"
        for scheme, bits in found.bits.items():
            yield Scheme("vectors", curve, scheme, bits, found.float16_bits, found.fvu[scheme])
    for each in compressed:
        name, figures, float16 = each.candidate.name, each.figures, 16 * each.candidate.d_out
        for scheme, bits in (each.bits | {ENTROPY: figures.entropy_bits.value}).items():
            yield Scheme(name, name, scheme, bits, float16, figures.fvu.value)


def _by_bits(schemes: list[Scheme]) -> go.Figure:
    points = {
        curve: [(each.bits, each.fvu, each.scheme) for each in group if each.scheme != ENTROPY]
        for curve, group in grouped(schemes, lambda scheme: scheme.curve).items()
    }
    figure = curves(points, "bits a vector", "FVU", mode="markers", marker_size=10)
    figure.update_xaxes(type="log", dtick="D2")
    return figure.update_yaxes(type="log", dtick=1, exponentformat="power")
