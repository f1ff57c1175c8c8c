"""Writes and reads files of codes block by block. Each block has a checksum.

docs/codes.md has the format byte by byte.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, Self

import torch
from torch import Tensor

from sae_binary_ext.checks import check_choice
from sae_binary_ext.coding import packed_width
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS

MAGIC, VERSION = b"SAECODES", 1
_START = struct.Struct("<8sIII")  # magic, version, length and checksum of the header
_BLOCK = struct.Struct("<III")  # tokens, length and checksum of the payload
_END = struct.Struct("<IQI")  # no tokens, tokens in all, checksum of all payloads
# Longer headers and blocks are not read, because a damaged file may claim any length.
LONGEST_HEADER, LONGEST_BLOCK = 2**24, 2**31


class CodeFileError(ValueError):
    """The file is damaged, cut short, or not a file of codes; the message says how."""


@dataclass(frozen=True)
class CodeHeader:
    """Header of a file of codes.

    Attributes:
        latents: width of a code, in bits.
        encoding: a key of ENCODINGS.
        coder: fingerprint of the coder that wrote the codes, from coder_fingerprint.
        mean_code: the packed mean code, hexadecimal; zeros if the encoding needs none.
        about: notes by the writer: names of coder, model and hook.
    """

    latents: int
    encoding: str
    coder: str
    mean_code: str
    about: dict[str, str]

    def __post_init__(self) -> None:
        check_choice(ENCODINGS, encoding=self.encoding)
        if len(self.mean_code) != 2 * packed_width(self.latents):
            came, needed = len(self.mean_code) // 2, packed_width(self.latents)
            raise ValueError(f"mean_code: has {came} bytes; {self.latents} latents need {needed}.")

    @property
    def mean(self) -> Tensor:
        """uint8 [packed_width(latents)], the mean code."""
        return torch.frombuffer(bytearray.fromhex(self.mean_code), dtype=torch.uint8)


class CodeWriter:
    """Writes a file of codes, used in a `with` block: the file appears when the block ends."""

    def __init__(self, path: Path, header: CodeHeader) -> None:
        self._path, self._header = path, header
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._tokens = self._checksum = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        text = json.dumps(vars(self._header)).encode()
        self._file = self._unfinished.open("wb")
        self._file.write(_START.pack(MAGIC, VERSION, len(text), zlib.crc32(text)) + text)
        return self

    def write(self, packed: Tensor) -> None:
        """Write a block of packed codes, uint8 [tokens, packed_width(latents)], on the CPU.

        Raises:
            ValueError: the codes have another width, or there are none.
        """
        latents, mean = self._header.latents, self._header.mean
        width = packed_width(latents)
        if packed.ndim != 2 or not len(packed) or packed.shape[1] != width:
            raise ValueError(
                f"packed codes of shape {tuple(packed.shape)}: a block takes at least one token, "
                f"and {width} bytes for each."
            )
        if self._file is None:
            raise ValueError(f"{self._path}: is not open. Write in a `with` block.")
        payload = ENCODINGS[self._header.encoding].encode(packed, latents, mean)
        self._checksum = zlib.crc32(payload, self._checksum)
        self._tokens += len(packed)
        self._file.write(_BLOCK.pack(len(packed), len(payload), zlib.crc32(payload)) + payload)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        with self._file:
            if kind is None:
                self._file.write(_END.pack(0, self._tokens, self._checksum))
        self._file = None
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink()


def read_header(path: Path) -> CodeHeader:
    """The header of a file; CodeFileError if the file holds no codes, or its header is damaged."""
    with path.open("rb") as file:
        return _header(file, path)


def read_codes(path: Path) -> Iterator[Tensor]:
    """The packed codes of a file, uint8 [tokens, packed_width(latents)], block by block.

    Raises:
        CodeFileError: the file is damaged or cut short; blocks before the damage are yielded first.
    """
    with path.open("rb") as file:
        header = _header(file, path)
        encoding, mean = ENCODINGS[header.encoding], header.mean
        total = checksum = 0
        for number in count():
            part = f"block {number}"
            (tokens,) = struct.unpack("<I", _exactly(file, 4, path, part))
            if not tokens:
                break
            length, expected = struct.unpack("<II", _exactly(file, 8, path, part))
            if max(length, tokens * header.latents) > LONGEST_BLOCK:
                claim = f"{tokens} tokens in {length} bytes"
                raise CodeFileError(f"{path}: {part} claims {claim}; it is damaged.")
            payload = _exactly(file, length, path, part)
            if (found := zlib.crc32(payload)) != expected:
                sums = f"its checksum is {found:08x}, and {expected:08x} was written"
                raise CodeFileError(f"{path}: {part} is damaged: {sums}.")
            try:
                packed = encoding.decode(payload, tokens, header.latents, mean)
            except ValueError as error:
                raise CodeFileError(f"{path}: {part}: {error}") from error
            total, checksum = total + tokens, zlib.crc32(payload, checksum)
            yield packed
        if struct.unpack("<QI", _exactly(file, 12, path, "the end")) != (total, checksum):
            raise CodeFileError(f"{path}: blocks are missing or in another order than written.")


def _header(file: BinaryIO, path: Path) -> CodeHeader:
    start = _exactly(file, _START.size, path, "the beginning")
    magic, version, length, checksum = _START.unpack(start)
    for refused, why in (
        (magic != MAGIC, f"begins with {magic!r}; a file of codes begins with {MAGIC!r}"),
        (version != VERSION, f"has version {version}, and this package reads {VERSION}"),
        (length > LONGEST_HEADER, f"its header claims {length} bytes; it is damaged"),
    ):
        if refused:
            raise CodeFileError(f"{path}: {why}.")
    text = _exactly(file, length, path, "the header")
    if zlib.crc32(text) != checksum:
        raise CodeFileError(f"{path}: its header is damaged.")
    try:
        return CodeHeader(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise CodeFileError(f"{path}: its header cannot be used: {error}") from error


def _exactly(file: BinaryIO, length: int, path: Path, part: str) -> bytes:
    found = file.read(length)
    if len(found) < length:
        sizes = f"{length} bytes were expected, and {len(found)} came"
        raise CodeFileError(f"{path}: ends in {part}: {sizes}.")
    return found
