"""Keeps a model's activations of a text in a file, which later commands read instead.

The file has the format of safetensors:

    text.tokens      int32 [rows, context], padded at the right
    text.lengths     int32 [rows], without padding
    text.documents   int32 [rows], the number of each row's document
    HOOK             float16 or bfloat16 [tokens, width], all rows one after the other, not padded

Its metadata say which model and which text they are of.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from sae_lens.util import DTYPE_MAP
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_binary_ext.measure.candidates import OpenedModel, settings_of_model, told
from sae_binary_ext.measure.documents import TextBatch, sizes_and_times
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD, official_name
from sae_binary_ext.settings import AUTO, FLOAT32, ActivationsFields, TextConfig

# Version of the file's layout.
LAYOUT = "1"
TEXT = ("text.tokens", "text.lengths", "text.documents")
# Names of number formats in safetensors.
FORMATS = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16"}
# A hook with larger values in the first batch is stored in bfloat16: float16 ends at 65504.
LARGEST_IN_FLOAT16 = 2.0**13
# safetensors begins with the size of its header, in this number of bytes.
SIZE_BYTES = 8
ANOTHER_FILE = "or name another file with --activations: one that does not exist is written"


@dataclass(frozen=True)
class SavedRows(TextBatch):
    """A batch of rows whose activations are in a file. Its first token has the number `first`."""

    first: int


class ActivationsFile:
    """A file of activations. ValueError if the file is damaged, or is not such a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
            # Files of earlier versions do not name a precision, because there was only one.
            self.about: dict[str, str] = {"precision": FLOAT32} | json.loads(metadata["about"])
            dtypes: dict[str, str] = json.loads(metadata["dtypes"])
            self._dtypes = {hook: DTYPE_MAP[name] for hook, name in dtypes.items()}
            self.has_all_text = json.loads(metadata["has_all_text"])
            text = [self._file.get_tensor(name).long() for name in TEXT]
            self._check_shapes(*text)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"activations={path}: is damaged, or is no file of activations ({error}). Delete "
                f"it, {ANOTHER_FILE}."
            ) from error
        self._tokens, self._lengths, self._documents = text

    def _check_shapes(self, tokens: Tensor, lengths: Tensor, documents: Tensor) -> None:
        rows, context = tokens.shape
        fits = lengths.shape == documents.shape == (rows,) and rows > 0
        if not fits or lengths.min() < 1 or lengths.max() > context or documents.min() < 0:
            raise ValueError("the rows of its text do not fit together")
        for hook in self._dtypes:
            found, *width = self._file.get_slice(hook).get_shape()
            if found != lengths.sum() or len(width) != 1:
                raise ValueError(f"{hook} does not have the tokens of its text")

    @property
    def hooks(self) -> set[str]:
        """The hooks whose activations it has."""
        return set(self._dtypes)

    def rows(self) -> Iterator[SavedRows]:
        """All rows, in the batches in which they were written."""
        first = 0
        parts = (each.split(ROWS_PER_FORWARD) for each in (self._tokens, self._lengths))
        numbers = self._documents.split(ROWS_PER_FORWARD)
        for tokens, lengths, documents in zip(*parts, numbers, strict=True):
            yield SavedRows(tokens, lengths, documents.tolist(), first)
            first += int(lengths.sum())

    def activations(self, rows: SavedRows, hooks: Iterable[str]) -> dict[str, Tensor]:
        """Activations [rows, context, width] by hook, in the model's number format.

        Padding is 0.
        """
        there = rows.positions(0)
        found: dict[str, Tensor] = {}
        for hook in hooks:
            part = self._file.get_slice(hook)[rows.first : rows.first + int(there.sum())]
            dtype = self._dtypes[hook]
            found[hook] = part.new_zeros(*there.shape, part.shape[1], dtype=dtype)
            found[hook][there] = part.to(dtype)
        return found


@dataclass(frozen=True, kw_only=True)
class OpenedFile(OpenedModel):
    """An opened model whose text and activations come from a file. The model does not run."""

    file: ActivationsFile
    device: str

    @override
    def rows(self) -> Iterator[TextBatch]:
        return self.file.rows()

    @override
    def activations(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        if not isinstance(text, SavedRows):
            return super().activations(text, more_hooks)
        found = self.file.activations(text, self.hook_names(more_hooks))
        self.check_widths(found)
        return {hook: value.to(self.device) for hook, value in found.items()}


def read_from_file(
    opened: OpenedModel, config: TextConfig, more_hooks: Iterable[str] = ()
) -> OpenedModel:
    """The opened model, with its text and activations from the file config.activations.

    Without such a setting, return `opened`. If the file does not exist, the model reads
    config.tokens tokens and the file is written. `more_hooks` are hooks besides those of the
    coders.

    Raises:
        ValueError: the file is damaged; it is of another model, text or hooks; it has too few
            tokens; or activations are too large for float16.
    """
    if not isinstance(config, ActivationsFields) or config.activations is None:
        return opened
    path, about, more_hooks = config.activations, _about(opened, config), list(more_hooks)
    if not path.exists():
        _write(path, opened, config.tokens, about, more_hooks)
    file = ActivationsFile(path)
    if config.precision == AUTO:
        about["precision"] = file.about["precision"]
    _check(file, about, opened, config.tokens, opened.hook_names(more_hooks))
    own = {field.name: getattr(opened, field.name) for field in fields(OpenedModel)}
    return OpenedFile(**own, file=file, device=config.device)


def _about(opened: OpenedModel, config: TextConfig) -> dict[str, str]:
    """All that the activations depend on, besides hooks and number of tokens."""
    source = config.text_source()
    return {
        "layout": LAYOUT,
        "model": official_name(opened.model_name),
        "precision": opened.precision,
        "class of the model": type(opened.model).__name__,
        "settings of the model": told(
            settings_of_model(opened.candidates[0]) if opened.candidates else {}
        ),
        "files of the model": _digest(sizes_and_times(opened.model_name)),
        "dataset": opened.text_name,
        "split": str(source.split),
        "text_column": str(source.text_column),
        "files of the dataset": _digest(sizes_and_times(opened.text_name)),
        "context_size": str(opened.context_size),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(
    file: ActivationsFile, about: dict[str, str], opened: OpenedModel, tokens: int, hooks: set[str]
) -> None:
    """Raise ValueError if a file does not have what is to be read."""
    names = [name for name, value in about.items() if file.about.get(name) != value]
    if names:
        there, here = (
            ", ".join(f"{name}={values.get(name)}" for name in names)
            for values in (file.about, about)
        )
        raise ValueError(
            f"activations={file.path}: was written with {there}, and this run has {here}. Give the "
            f"settings that it was written with, {ANOTHER_FILE}."
        )
    if missing := sorted(hooks - file.hooks):
        raise ValueError(
            f"activations={file.path}: has the hooks {sorted(file.hooks)}, and this run reads "
            f"{missing}. Give coders of its hooks, {ANOTHER_FILE}."
        )
    number = sum(int(rows.positions(opened.first_position).sum()) for rows in file.rows())
    if number < tokens and not file.has_all_text:
        raise ValueError(
            f"tokens={tokens}: {file.path} has {number} tokens from position "
            f"{opened.first_position} on. Give at most {number}, {ANOTHER_FILE}."
        )


def _write(
    path: Path, opened: OpenedModel, tokens: int, about: dict[str, str], more_hooks: list[str]
) -> None:
    """Read a text with the model, and write the file once it is whole."""
    batches = list(opened.batches(tokens))
    if not batches:
        raise ValueError("dataset: holds no text to read.")
    has_all_text = sum(number for _, number in batches) < tokens
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two commands that write the same file at once do not share this one.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with tqdm(total=tokens, desc="Activations", unit="tokens", unit_scale=True) as progress:

            def read(text: TextBatch) -> dict[str, Tensor]:
                there = text.positions(0)
                found = opened.activations(text, more_hooks)
                progress.update(int(text.positions(opened.first_position).sum()))
                return {hook: each[there.to(each.device)].cpu() for hook, each in found.items()}

            metadata = {"about": json.dumps(about), "has_all_text": json.dumps(has_all_text)}
            _write_parts(unfinished, [text for text, _ in batches], read, metadata)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_parts(
    path: Path,
    batches: list[TextBatch],
    read: Callable[[TextBatch], Mapping[str, Tensor]],
    metadata: dict[str, str],
) -> None:
    """Write a file batch by batch: save_file of safetensors would hold all of it in memory.

    `read` gives the activations [tokens, width] of a batch by hook.
    """
    first = read(batches[0])
    number = sum(int(batch.lengths.sum()) for batch in batches)
    stored = {hook: _stored_dtype(each) for hook, each in first.items()}
    dtypes = {hook: str(each.dtype).removeprefix("torch.") for hook, each in first.items()}
    text = {
        "text.tokens": torch.cat([batch.tokens for batch in batches]),
        "text.lengths": torch.cat([batch.lengths for batch in batches]),
        "text.documents": torch.tensor([each for batch in batches for each in batch.documents]),
    }
    shapes = {name: (torch.int32, list(each.shape)) for name, each in text.items()}
    shapes |= {hook: (stored[hook], [number, each.shape[1]]) for hook, each in first.items()}
    header, starts = _header(shapes, metadata | {"dtypes": json.dumps(dtypes)})
    with path.open("wb") as stream:

        def put(name: str, values: Tensor) -> None:
            stream.seek(starts[name])
            stream.write(values.contiguous().flatten().view(torch.uint8).numpy().data)
            starts[name] = stream.tell()

        stream.write(header)
        for name, values in text.items():
            put(name, values.int())
        for place, batch in enumerate(batches):
            for hook, values in (read(batch) if place else first).items():
                put(hook, _rounded(hook, values, stored[hook]))


def _header(
    shapes: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and the place of each tensor's first byte in the file."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    places: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        places[name] = end
        end += torch.Size(shape).numel() * dtype.itemsize
        offsets = [places[name], end]
        entries[name] = {"dtype": FORMATS[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % SIZE_BYTES)  # the data must begin at a multiple of 8 bytes
    header = len(text).to_bytes(SIZE_BYTES, "little") + text
    return header, {name: len(header) + place for name, place in places.items()}


def _stored_dtype(values: Tensor) -> torch.dtype:
    """The number format in which a hook's activations are stored."""
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.dtype
    return torch.float16 if values.abs().max() <= LARGEST_IN_FLOAT16 else torch.bfloat16


def _rounded(hook: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    if (rounded.isinf() & ~values.isinf()).any():
        raise ValueError(
            f"activations: values at {hook} reach {values.abs().max().item():g}, and float16 ends "
            f"at {torch.finfo(dtype).max:g}. Leave --activations out."
        )
    return rounded
