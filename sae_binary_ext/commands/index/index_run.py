"""`sae-binary index`: reads a text once and writes the codes to an index, segment by segment."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.commands.index import index_folder as files
from sae_binary_ext.commands.index.config import IndexConfig
from sae_binary_ext.commands.index.index_folder import IndexFolder, IndexHeader
from sae_binary_ext.commands.index.segment_builder import SegmentBuilder
from sae_binary_ext.measure.in_model import official_name
from sae_binary_ext.measure.reading import (
    OpenedModel,
    ReadBatch,
    fingerprint,
    interrupts_noted,
    open_coders,
)
from sae_binary_ext.measure.saved_activations import read_from_file
from sae_binary_ext.saelens.autoencoder import BinaryCoder

# A segment is written once it holds this number of firings, so memory does not grow with the text.
FIRINGS_IN_SEGMENT = 2**23
# Positions of tokens are 32 bits wide.
MOST_TOKENS = 2**32
# Fields of the header, and what to do if the index has another value.
_REMEDIES = {
    "coder": "Give the coder of the index, or another OUT.",
    "model": "Name the model of the index with --model, or give another OUT.",
    "hook": "Give the coder of the index, or another OUT.",
    "tokenizer": "Give a model with the tokenizer of the index, or another OUT.",
}


def run_index(out: Path, coder: str, config: IndexConfig) -> IndexFolder:
    """Index a text, or go on with it, or add it to the index in `out`.

    Errors are those of open_coders. Also ValueError if `coder` names several coders, if the index
    is of another coder, model, tokenizer or context size, or if a text has changed since it was
    indexed. Ctrl-C writes all that was read and raises KeyboardInterrupt.
    """
    config.output = out
    opened = read_from_file(open_coders([coder], config, out), config)
    header = header_of(opened, config)
    index = _opened_index(out, header, opened)
    index.about |= {"coder": coder, "model": config.model, "hook": config.hook}
    source = list(config.text_source().names(opened.text_name))
    of_files = fingerprint([], config.text_source(), source[:1])
    done = _batches_done(index, source, of_files)
    opened.outliers.start(index.about["medians"])
    builder, written = SegmentBuilder(header.latents), index.tokens

    def write() -> None:
        nonlocal builder, written
        if builder.batches:
            index.about["medians"] = opened.outliers.medians
            index.write_header()
            number = len(list((out / files.SEGMENTS).glob("[0-9]*")))
            builder.write(out / files.SEGMENTS / f"{number:06}", source, of_files)
            written += builder.tokens
            builder = SegmentBuilder(header.latents)

    with interrupts_noted() as interrupted:
        for batch in _read_on(opened, config.tokens, done):
            _add(builder, batch, opened)
            if written + builder.tokens >= MOST_TOKENS:
                raise ValueError(f"{out}: an index holds fewer than {MOST_TOKENS} tokens.")
            if builder.firings >= FIRINGS_IN_SEGMENT:
                write()
            if interrupted():
                write()
                raise KeyboardInterrupt
    write()
    if not (out / files.SEGMENTS).exists():
        raise ValueError("dataset: holds no text to index.")
    return IndexFolder.open(out)


def header_of(opened: OpenedModel, config: IndexConfig) -> IndexHeader:
    """What the codes of an opened coder depend on; ValueError if there are several coders."""
    if len(opened.candidates) != 1:
        names = [each.name for each in opened.candidates]
        raise ValueError(f"coder: came with {names}, and an index is of one coder. Name one.")
    (candidate,) = opened.candidates
    return IndexHeader(
        coder=coder_digest(candidate.coder),
        has_values=not isinstance(candidate.coder, BinaryCoder),
        latents=candidate.coder.cfg.d_sae,
        model=official_name(opened.model_name),
        hook=candidate.site.hook_name,
        tokenizer=_sha256(json.dumps(_vocabulary(opened.tokenizer))),
        context_size=opened.context_size,
        first_position=opened.first_position,
        norm_limit=config.norm_limit,
        precision=opened.precision,
    )


def coder_digest(coder: Any) -> str:
    """SHA-256 of a coder's weights and of its settings, without the device and the metadata."""
    settings = coder.cfg.to_dict()
    settings = {key: settings[key] for key in sorted(settings.keys() - {"device", "metadata"})}
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for name, tensor in sorted(coder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_same(own: IndexHeader, found: IndexHeader, path: Path) -> None:
    """Raise ValueError if codes of `found` do not belong in the index of header `own`."""
    for name, value in asdict(own).items():
        if (came := getattr(found, name)) != value:
            remedy = _REMEDIES.get(name, f"Set --{name} {value}, or give another OUT.")
            raise ValueError(f"{name}={_short(came)}: {path} has {_short(value)}. {remedy}")


def _short(value: Any) -> str:
    """A value in a message; of a hash the first digits."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == hashlib.sha256().digest_size * 2 else text


def _opened_index(out: Path, header: IndexHeader, opened: OpenedModel) -> IndexFolder:
    """The index in a folder, of this header; a new one has its vocabulary on disk and no header."""
    if (out / files.HEADER).exists():
        index = IndexFolder.open(out)
        check_same(index.header, header, out)
        return index
    vocabulary = json.dumps(_vocabulary(opened.tokenizer), ensure_ascii=False)
    (out / files.VOCABULARY).write_text(vocabulary, encoding="utf-8")
    return IndexFolder(out, header, {"medians": {}}, [])


def _batches_done(index: IndexFolder, source: list[str], of_files: str) -> int:
    """How many batches of a text the index holds; ValueError if the text has changed."""
    own = [each.facts for each in index.segments if each.facts.source == source]
    if any(facts.files != of_files for facts in own):
        raise ValueError(
            f"dataset={source[0]!r}: has changed since it was indexed in {index.path}. Give new "
            "texts in a file of their own, or another OUT."
        )
    return sum(facts.batches for facts in own)


def _read_on(opened: OpenedModel, tokens: int, done: int) -> Iterator[ReadBatch]:
    """Batches of the text with activations, without the first `done` batches."""
    with tqdm(total=tokens, desc="Indexing", unit="tokens", unit_scale=True) as progress:
        for number, (text, size) in enumerate(opened.batches(tokens)):
            if number >= done:
                yield opened.read(text)
            progress.update(size)


def _add(builder: SegmentBuilder, batch: ReadBatch, opened: OpenedModel) -> None:
    """Add a batch to a segment: all tokens of the text, and the codes of those that count."""
    text, (candidate,) = batch.text, opened.candidates
    has_start = opened.tokenizer.bos_token_id is not None
    # The token that begins each row is text only if it counts.
    kept = text.positions(min(int(has_start), opened.first_position))
    codes = batch.codes(candidate.coder, opened.hooks[candidate.site][0])
    row, latent = (codes != 0).nonzero().cpu().unbind(1)
    documents = torch.tensor(text.documents).repeat_interleave(kept.sum(1))
    builder.add(
        text.tokens[kept].numpy(),
        batch.where[kept].numpy(),
        (row.numpy(), latent.numpy()),
        documents.numpy(),
    )


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token id, as it stands after other text: with its space, if it has one."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    pairs = [[*before, token] for token in range(len(tokenizer))]
    texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
    start = len(str(tokenizer.decode(before)))
    return [str(text)[start:] for text in texts]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
