"""`sae-binary compress`: writes hidden states to files as codes, and reads them back."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.coding import pack, packed_width, unpack
from sae_binary_ext.commands.compress import code_file
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS, RunningVectors, VectorFigures
from sae_binary_ext.commands.compress.compress_page import Compressed, compress_page
from sae_binary_ext.commands.compress.config import CompressConfig
from sae_binary_ext.measure.candidates import Candidate, Site
from sae_binary_ext.measure.figures import CoderFigures
from sae_binary_ext.measure.reading import OpenedModel, RunningCoders, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder

FIRST_ENCODING = "packed"
# Checks that find coders whose output needs more than codes of 0 and 1, with their error texts.
_INCOMPRESSIBLE: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda coder: not isinstance(coder, BinaryCoder),
        "its codes have values, and these files store only 0 and 1. Give binary coders.",
    ),
    (
        lambda coder: coder.cfg.normalize_activations == "layer_norm",
        "normalize_activations='layer_norm' needs each vector's own mean and deviation to decode, "
        "and codes do not hold them. Give a coder without layer_norm.",
    ),
    (
        lambda coder: getattr(coder, "W_skip", None) is not None,
        "its skip connection needs the input itself to decode. Give a transcoder without a skip "
        "connection.",
    ),
)


def run_compress(coders: list[str], config: CompressConfig) -> Analysis:
    """Compress hidden states by coders; arguments and errors as for analyse_coders.

    Raises:
        ValueError: codes alone do not give a coder's output, or zstandard is missing.
    """
    return analyse_coders(coders, config, _measure, compress_page)


def _measure(
    opened: OpenedModel, config: CompressConfig
) -> tuple[dict[Site, VectorFigures], list[Compressed]]:
    """Write packed codes of the text, measure codes and vectors, and try the other encodings."""
    for candidate in opened.candidates:
        check_compressible(candidate.name, candidate.coder)
    running = RunningCoders(opened)
    vectors = {site: RunningVectors() for site in opened.hooks}
    with ExitStack() as files:
        writers = {
            each.name: files.enter_context(
                code_file.CodeWriter(
                    _path(config.output, each, FIRST_ENCODING), _header(opened, each)
                )
            )
            for each in opened.candidates
        }
        for batch in read_text(opened, config):
            for candidate, _, active in running.add(batch):
                writers[candidate.name].write(pack(active))
            for site, own in vectors.items():
                own.add(batch.activations(opened.hooks[site])[1])
    totals = {site: each.totals()[0].item() for site, each in running.variances.items()}
    coders = list(zip(opened.candidates, running.figures(), strict=True))
    compressed = [
        _encode_again(candidate, own, config.output)
        for candidate, own in tqdm(coders, "Encodings", unit="coders")
    ]
    return {site: own.figures(totals[site]) for site, own in vectors.items()}, compressed


def check_compressible(name: str, coder: Any) -> None:
    """Raise ValueError if codes of 0 and 1 alone do not give a coder's output."""
    for refused, why in _INCOMPRESSIBLE:
        if refused(coder):
            raise ValueError(f"{name}: {why}")


def coder_fingerprint(coder: Any) -> str:
    """SHA-256 of a binary coder's decoder, hexadecimal. Equal decoders have equal fingerprints."""
    digest = hashlib.sha256()
    for tensor in (coder.W_dec, coder.b_dec):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def decompress(path: Path, coder: Any) -> Iterator[Tensor]:
    """Decode the hidden states of a file with the binary coder that wrote its codes.

    Yields blocks of hidden states, [tokens, d_out], in the coder's dtype and on its device.

    Raises:
        CodeFileError: the file is damaged, or another coder wrote it.
    """
    header, own = code_file.read_header(path), coder_fingerprint(coder)
    if header.coder != own:
        writer = f": {header.about['coder']}" if "coder" in header.about else ""
        raise code_file.CodeFileError(
            f"{path}: was written with a coder of fingerprint {header.coder[:12]}…, and this "
            f"coder has {own[:12]}…. Give the coder that wrote the file{writer}."
        )
    for packed in code_file.read_codes(path):
        yield coder.decode(unpack(packed, header.latents, coder.dtype).to(coder.device))


def _header(opened: OpenedModel, candidate: Candidate) -> code_file.CodeHeader:
    latents = candidate.coder.cfg.d_sae
    about = {"coder": candidate.name, "model": opened.model_name, **vars(candidate.site)}
    no_mean = "00" * packed_width(latents)
    return code_file.CodeHeader(
        latents, FIRST_ENCODING, coder_fingerprint(candidate.coder), no_mean, about
    )


def _path(folder: Path, candidate: Candidate, encoding: str) -> Path:
    return folder / f"{candidate.name}.{encoding}.codes".replace("/", "_").replace(", ", "_")


def _encode_again(candidate: Candidate, figures: CoderFigures, folder: Path) -> Compressed:
    """Write a coder's codes in the other encodings, check each, and keep the smallest file."""
    paths = {encoding: _path(folder, candidate, encoding) for encoding in ENCODINGS}
    first = paths[FIRST_ENCODING]
    mean = pack(figures.rates > 0.5).numpy().tobytes().hex()
    for encoding, path in paths.items():
        if path == first:
            continue
        header = replace(code_file.read_header(first), encoding=encoding, mean_code=mean)
        with code_file.CodeWriter(path, header) as writer:
            for packed in code_file.read_codes(first):
                writer.write(packed)
        for number, pair in enumerate(
            zip(code_file.read_codes(first), code_file.read_codes(path), strict=True)
        ):
            if not torch.equal(*pair):
                raise code_file.CodeFileError(f"{path}: block {number} is not what was written.")
    sizes = {encoding: path.stat().st_size for encoding, path in paths.items()}
    kept = folder / f"{candidate.name.replace('/', '_')}.codes"
    paths.pop(min(sizes, key=lambda encoding: sizes[encoding])).replace(kept)
    for path in paths.values():
        path.unlink()
    bits = {encoding: 8 * size / figures.tokens for encoding, size in sizes.items()}
    return Compressed(candidate, figures, bits, kept)
