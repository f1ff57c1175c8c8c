"""Writes indexes of given codes, without a model."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.index.index_folder import IndexFolder, IndexHeader
from sae_binary_ext.commands.index.segment_builder import SegmentBuilder

VOCABULARY = 50


def write_header(folder: Path, latents: int, **changes: object) -> None:
    """Write header and vocabulary of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    header = IndexHeader("c" * 64, False, latents, "model", "blocks.0", "t" * 64, 16, 1, 10.0)
    IndexFolder(folder, IndexHeader(**vars(header) | changes), {"medians": {}}, []).write_header()
    words = [f" w{number}" for number in range(VOCABULARY)]
    (folder / files.VOCABULARY).write_text(json.dumps(words))


def write_index(
    folder: Path,
    codes: NDArray[np.bool_],
    has_code: NDArray[np.bool_],
    documents: NDArray[np.int64],
    batches: Iterable[tuple[int, int, int]],
    **changes: object,
) -> None:
    """Write codes [tokens, latents] to an index.

    `batches` has the segment, the first token and the end of each batch. Tokens are numbered words.
    """
    write_header(folder, codes.shape[1], **changes)
    builders: dict[int, SegmentBuilder] = {}
    for segment, begin, end in batches:
        builder = builders.setdefault(segment, SegmentBuilder(codes.shape[1]))
        own, has = codes[begin:end], has_code[begin:end]
        token_ids = np.arange(begin, end) % VOCABULARY
        builder.add(token_ids, has, own[has].nonzero(), documents[begin:end])
    for segment, builder in builders.items():
        builder.write(folder / files.SEGMENTS / f"{segment:06}", ["text"], "")
