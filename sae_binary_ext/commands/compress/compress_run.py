"""`sae-binary compress`: hidden states as codes in files, and back."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import pack, packed_width, unpack
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS
from sae_binary_ext.commands.compress.code_file import (
    CodeFileError,
    CodeHeader,
    CodeWriter,
    read_codes,
    read_header,
)
from sae_binary_ext.commands.compress.compress_page import Compressed, compress_page
from sae_binary_ext.commands.compress.config import CompressConfig
from sae_binary_ext.commands.compress.vector_sizes import RunningVectors, VectorFigures
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.reading import OpenedModel, RunningCoders, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder

FIRST_ENCODING = "packed"


def run_compress(coders: list[str], config: CompressConfig) -> Analysis:
    """Compress hidden states by coders; arguments and errors as analyse_coders has them.

    Raises:
        ValueError: also if codes alone do not give a coder's output, or zstandard is missing.
    """
    return analyse_coders(coders, config, _measure, compress_page)


def _measure(
    opened: OpenedModel, config: CompressConfig
) -> tuple[dict[Site, VectorFigures], list[Compressed]]:
    for candidate in opened.candidates:
        check_compressible(candidate.name, candidate.coder)
    vectors, figures = _write_packed(opened, config)
    coders = list(zip(opened.candidates, figures, strict=True))
    compressed = [
        _encode_again(candidate, own, config.output)
        for candidate, own in tqdm(coders, "Encodings", unit="coders")
    ]
    return vectors, compressed


def check_compressible(name: str, coder: Any) -> None:
    """Raise ValueError if codes of 0 and 1 alone do not give a coder's output."""
    if not isinstance(coder, BinaryCoder):
        raise ValueError(
            f"{name}: its codes have values, and these files store only 0 and 1. Give binary "
            "coders."
        )
    if coder.cfg.normalize_activations == "layer_norm":
        raise ValueError(
            f"{name}: normalize_activations='layer_norm' needs each vector's own mean and "
            "deviation to decode, and codes do not hold them. Give a coder without layer_norm."
        )
    if getattr(coder, "W_skip", None) is not None:
        raise ValueError(
            f"{name}: its skip connection needs the input itself to decode. Give a transcoder "
            "without a skip connection."
        )


def coder_fingerprint(coder: Any) -> str:
    """SHA-256, in hexadecimal, of a coder's decoder: two coders with the same one decode alike.

    Args:
        coder: a binary coder.
    """
    digest = hashlib.sha256()
    for tensor in (coder.W_dec, coder.b_dec):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def decompress(path: Path, coder: Any) -> Iterator[Tensor]:
    """Decode the hidden states of a file of codes.

    Args:
        path: the file.
        coder: the binary coder that wrote the codes, from load_coder.

    Yields:
        [tokens, d_out] in the coder's dtype, on its device, a block at a time.

    Raises:
        CodeFileError: the file is damaged, or of another coder.
    """
    header = read_header(path)
    if header.coder != coder_fingerprint(coder):
        raise CodeFileError(
            f"{path}: was written with a coder of fingerprint {header.coder[:12]}…, and this "
            f"coder has {coder_fingerprint(coder)[:12]}…. Give the coder that wrote the file"
            f"{': ' * bool(header.about)}{header.about.get('coder', '')}."
        )
    for packed in read_codes(path):
        yield coder.decode(unpack(packed, header.latents, coder.dtype).to(coder.device))


def _write_packed(
    opened: OpenedModel, config: CompressConfig
) -> tuple[dict[Site, VectorFigures], list[CoderFigures]]:
    """Read the text, write each coder's packed codes, and measure both codes and vectors."""
    running = RunningCoders(opened)
    vectors = {site: RunningVectors() for site in opened.hooks}
    with ExitStack() as files:
        writers = {
            each.name: files.enter_context(
                CodeWriter(_path(config.output, each, FIRST_ENCODING), _header(opened, each))
            )
            for each in opened.candidates
        }
        for batch in read_text(opened, config):
            for candidate, _, active in running.add(batch):
                writers[candidate.name].write(pack(active))
            for site, own in vectors.items():
                own.add(batch.activations(opened.hooks[site])[1])
    totals = {site: each.totals()[0].item() for site, each in running.variances.items()}
    return {site: own.figures(totals[site]) for site, own in vectors.items()}, running.figures()


def _header(opened: OpenedModel, candidate: Candidate) -> CodeHeader:
    latents = candidate.coder.cfg.d_sae
    about = {
        "coder": candidate.name,
        "model": opened.model_name,
        "hook_name": candidate.site.hook_name,
        "hook_name_out": candidate.site.hook_name_out,
    }
    no_mean = "00" * packed_width(latents)
    return CodeHeader(latents, FIRST_ENCODING, coder_fingerprint(candidate.coder), no_mean, about)


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
