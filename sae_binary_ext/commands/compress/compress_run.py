"""`sae-binary compress`: hidden states as codes in files, and what that keeps and takes."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import pack, unpack
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS
from sae_binary_ext.commands.compress.code_file import (
    CodeFileError,
    CodeHeader,
    CodeWriter,
    no_mean,
    read_codes,
    read_header,
)
from sae_binary_ext.commands.compress.config import CompressConfig
from sae_binary_ext.commands.compress.vector_sizes import RunningVectors, VectorFigures
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.figures import (
    CoderFigures,
    RunningFigures,
    RunningVariance,
)
from sae_binary_ext.measure.intervals import document_weights
from sae_binary_ext.measure.reading import OpenedModel, open_coders, read_text, settings_of
from sae_binary_ext.report.analysis import (
    Analysis,
    Column,
    Table,
    Value,
    write_analysis,
)
from sae_binary_ext.saelens.autoencoder import BinaryCoder

FIRST_ENCODING = "packed"
REMARKS = (
    "Hidden states were encoded, their codes written to files, read back and compared bit for bit: "
    "every scheme of a coder keeps the same codes, and so the same FVU. Packed is a bit a latent; "
    "sparse the number of ones of each vector and two bytes for each; difference the same of the "
    "latents that are not as in the rounded mean code; zstandard compresses blocks of some 2,000 "
    "vectors. Bits count whole files, with headers and checksums. Entropy is no file: the sum over "
    "latents of the entropy of their firing rates, which a coder of independent latents with known "
    "rates would come to.",
    "Beside them the vectors themselves, in float16 and in int8 (each vector scaled by its largest "
    "element, the scale in float16), and both compressed. They keep nearly everything, at many "
    "times the bits: a coder's codes are a summary, and what its FVU leaves out is lost for good. "
    "Codes that reconstruct well need not keep what matters to the model; sae-binary compare "
    "measures that.",
)
COLUMNS = (
    Column("what"),
    Column("scheme"),
    Column("bits a vector", "Of the whole file.", ",.0f"),
    Column("of float16", "Share of the bits that the vector takes in float16.", ".1%"),
    Column("FVU", "Squared error of what comes back, over total variance.", ".2g"),
)


@dataclass(frozen=True)
class Compressed:
    """A coder's codes in files.

    Attributes:
        candidate: the coder.
        figures: of codes and outputs.
        sizes: of each encoding, bytes of the file.
        kept: the smallest file.
    """

    candidate: Candidate
    figures: CoderFigures
    sizes: dict[str, int]
    kept: Path


def run_compress(coders: list[str], config: CompressConfig) -> Analysis:
    """Compress hidden states; files go to config.output.

    Args:
        coders: folders of coders, folders of such folders, or Hub ids of either.
        config: the rest.

    Raises:
        CheckpointError: a coder cannot be read.
        ValueError: coders whose outputs are not of their codes alone, or zstandard is missing.
    """
    opened = open_coders(coders, config, config.output)
    for candidate in opened.candidates:
        check_compressible(candidate.name, candidate.coder)
    vectors, figures = _write_packed(opened, config)
    compressed = [
        _encode_again(candidate, figures[candidate.name], config.output)
        for candidate in tqdm(opened.candidates, "Encodings", unit="coders")
    ]
    rows = [row for found in vectors.values() for row in _vector_rows(found)]
    rows += [row for each in compressed for row in _rows(each)]
    analysis = Analysis(
        "compress",
        "Hidden states compressed",
        REMARKS,
        [Table("Bits a vector", COLUMNS, rows)],
        {"FVU by bits": _by_bits(vectors, compressed)},
        {
            "vectors": {str(site): vars(found) for site, found in vectors.items()},
            "coders": [_described(each) for each in compressed],
        },
    )
    run = settings_of(opened, config)
    write_analysis(analysis, run, config.output)
    return analysis


def check_compressible(name: str, coder: Any) -> None:
    """Raise ValueError where codes of 0 and 1 alone do not give a coder's output."""
    if not isinstance(coder, BinaryCoder):
        raise ValueError(
            f"{name}: its codes have values, which these files have no place for. Give binary "
            "coders."
        )
    if coder.cfg.normalize_activations == "layer_norm":
        raise ValueError(
            f"{name}: normalize_activations='layer_norm' takes each vector's own mean and "
            "deviation to decode, which its codes do not have. Give a coder without."
        )
    if getattr(coder, "W_skip", None) is not None:
        raise ValueError(
            f"{name}: its skip connection takes the input itself to decode. Give a transcoder "
            "without."
        )


def coder_fingerprint(coder: Any) -> str:
    """SHA-256, in hexadecimal, of what decodes: the same for coders whose codes mean the same.

    Args:
        coder: a binary coder.
    """
    digest = hashlib.sha256()
    for tensor in (coder.W_dec, coder.b_dec):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def decompress(path: Path, coder: Any) -> Iterator[Tensor]:
    """Hidden states of a file of codes, as the coder has them.

    Args:
        path: the file.
        coder: the binary coder whose codes they are, as load_coder gives it.

    Yields:
        [tokens, d_out] in the coder's dtype, on its device, a block at a time.

    Raises:
        CodeFileError: the file is damaged, or of another coder.
    """
    header = read_header(path)
    if header.coder != coder_fingerprint(coder):
        raise CodeFileError(
            f"{path}: is of a coder with the fingerprint {header.coder[:12]}…, and this one has "
            f"{coder_fingerprint(coder)[:12]}…. Give the coder that it was written with"
            f"{': ' * bool(header.about)}{header.about.get('coder', '')}."
        )
    for packed in read_codes(path):
        yield coder.decode(unpack(packed, header.latents, coder.dtype).to(coder.device))


def _write_packed(
    opened: OpenedModel, config: CompressConfig
) -> tuple[dict[Site, VectorFigures], dict[str, CoderFigures]]:
    """Read the text, write each coder's packed codes, and measure them and the vectors."""
    variances = {each.site: RunningVariance(each.d_out) for each in opened.candidates}
    vectors = {site: RunningVectors() for site in variances}
    figures = {each.name: RunningFigures(each.coder) for each in opened.candidates}
    with ExitStack() as files:
        writers = {
            each.name: files.enter_context(
                CodeWriter(_path(config.output, each, FIRST_ENCODING), _header(opened, each))
            )
            for each in opened.candidates
        }
        for batch in read_text(opened, config):
            weights = document_weights(batch.text.documents)
            for site, variance in variances.items():
                tokens = batch.tokens(opened.hooks[site], weights)
                variance.add(tokens)
                vectors[site].add(tokens.targets)
                for candidate in opened.candidates:
                    if candidate.site == site:
                        active = figures[candidate.name].add(tokens)
                        writers[candidate.name].write(pack(active))
    totals = {site: variance.totals()[0].item() for site, variance in variances.items()}
    return (
        {site: found.figures(totals[site]) for site, found in vectors.items()},
        {each.name: figures[each.name].figures(variances[each.site]) for each in opened.candidates},
    )


def _header(opened: OpenedModel, candidate: Candidate) -> CodeHeader:
    latents = candidate.coder.cfg.d_sae
    about = {
        "coder": candidate.name,
        "model": opened.model_name,
        "hook_name": candidate.site.hook_name,
        "hook_name_out": candidate.site.hook_name_out,
    }
    mean = no_mean(latents)
    return CodeHeader(latents, FIRST_ENCODING, coder_fingerprint(candidate.coder), mean, about)


def _path(folder: Path, candidate: Candidate, encoding: str) -> Path:
    name = f"{candidate.name}.{encoding}.codes".replace("/", "_").replace(", ", "_")
    return folder / name


def _encode_again(candidate: Candidate, figures: CoderFigures, folder: Path) -> Compressed:
    """Write a coder's codes in the other encodings, check each, and keep the smallest file."""
    first = _path(folder, candidate, FIRST_ENCODING)
    mean = pack(figures.rates > 0.5).numpy().tobytes().hex()
    paths = {encoding: _path(folder, candidate, encoding) for encoding in ENCODINGS}
    for encoding, path in paths.items():
        if path != first:
            header = replace(read_header(first), encoding=encoding, mean_code=mean)
            with CodeWriter(path, header) as writer:
                for packed in read_codes(first):
                    writer.write(packed)
            _check_same(first, path)
    sizes = {encoding: path.stat().st_size for encoding, path in paths.items()}
    smallest = min(sizes, key=lambda encoding: sizes[encoding])
    kept = folder / f"{candidate.name.replace('/', '_')}.codes"
    paths.pop(smallest).replace(kept)
    for path in paths.values():
        path.unlink()
    return Compressed(candidate, figures, sizes, kept)


def _check_same(one: Path, other: Path) -> None:
    for number, (first, second) in enumerate(zip(read_codes(one), read_codes(other), strict=True)):
        if not torch.equal(first, second):
            raise CodeFileError(f"{other}: block {number} is not what was written.")


def _bits(each: Compressed) -> dict[str, float]:
    tokens = each.figures.tokens
    return {encoding: 8 * size / tokens for encoding, size in each.sizes.items()}


def _vector_rows(found: VectorFigures) -> list[list[Value]]:
    return [
        ["vectors", scheme, bits, bits / found.float16_bits, found.fvu[scheme]]
        for scheme, bits in found.bits.items()
    ]


def _rows(each: Compressed) -> list[list[Value]]:
    float16 = 16 * each.candidate.d_out
    schemes = _bits(each) | {"entropy (no file)": each.figures.entropy_bits.value}
    return [
        [each.candidate.name, scheme, bits, bits / float16, each.figures.fvu.value]
        for scheme, bits in schemes.items()
    ]


def _described(each: Compressed) -> dict[str, Any]:
    return {
        "name": each.candidate.name,
        "latents": each.figures.latents,
        "vectors": each.figures.tokens,
        "fvu": each.figures.fvu,
        "l0": each.figures.l0,
        "entropy_bits": each.figures.entropy_bits,
        "bits": _bits(each),
        "file": each.kept.name,
    }


def _by_bits(vectors: dict[Site, VectorFigures], compressed: list[Compressed]) -> go.Figure:
    figure = go.Figure()
    for site, found in vectors.items():
        figure.add_scatter(
            x=list(found.bits.values()),
            y=[found.fvu[scheme] for scheme in found.bits],
            text=list(found.bits),
            mode="markers",
            marker_size=10,
            name="vectors" if len(vectors) == 1 else f"vectors at {site}",
        )
    for each in compressed:
        bits = _bits(each)
        figure.add_scatter(
            x=list(bits.values()),
            y=[each.figures.fvu.value] * len(bits),
            text=list(bits),
            mode="markers",
            marker_size=10,
            name=each.candidate.name,
        )
    figure.update_xaxes(title="bits a vector", type="log", dtick="D2")
    figure.update_yaxes(title="FVU", type="log", dtick=1, exponentformat="power")
    return figure
