"""Files of codes give back the codes that were written, and damage is noticed."""

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_binary_ext.coding import pack, packed_width
from sae_binary_ext.commands.compress.code_encodings import ENCODINGS
from sae_binary_ext.commands.compress.code_file import (
    CodeFileError,
    CodeHeader,
    CodeWriter,
    read_codes,
    read_header,
)

LATENTS = 21
ABOUT = {"coder": "a binary one"}
SOURCES: dict[str, Tensor] = {
    "some": torch.rand(50, LATENTS) < 0.1,
    "most": torch.rand(50, LATENTS) < 0.9,
    "none": torch.zeros(7, LATENTS).bool(),
    "all": torch.ones(7, LATENTS).bool(),
    "one token": torch.rand(1, LATENTS) < 0.5,
    "eight latents": torch.rand(30, 8) < 0.5,
    "one latent": torch.rand(30, 1) < 0.5,
    "many latents": torch.rand(4, 70_000) < 0.001,
}


def header_of(latents: int, encoding: str, mean: Tensor | None = None) -> CodeHeader:
    text = "00" * packed_width(latents) if mean is None else mean.numpy().tobytes().hex()
    return CodeHeader(latents, encoding, "abc", text, ABOUT)


def write(path: Path, codes: Tensor, encoding: str = "sparse", blocks: int = 3) -> None:
    mean = pack(codes.float().mean(0) > 0.5)
    with CodeWriter(path, header_of(codes.shape[1], encoding, mean)) as writer:
        for part in pack(codes).chunk(blocks):
            writer.write(part)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("source", SOURCES)
def test_codes_come_back_bit_for_bit(source: str, encoding: str, tmp_path: Path):
    codes = SOURCES[source]
    write(tmp_path / "codes", codes, encoding)
    header = read_header(tmp_path / "codes")
    assert (header.latents, header.encoding, header.about) == (codes.shape[1], encoding, ABOUT)
    assert torch.equal(torch.cat(list(read_codes(tmp_path / "codes"))), pack(codes))
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_without_any_codes_is_whole(encoding: str, tmp_path: Path):
    with CodeWriter(tmp_path / "codes", header_of(LATENTS, encoding)):
        pass
    assert list(read_codes(tmp_path / "codes")) == []


def test_sizes_are_those_of_the_formats_description(tmp_path: Path):
    codes = SOURCES["some"]
    sizes: dict[str, int] = {}
    for encoding in ("packed", "sparse"):
        write(tmp_path / "codes", codes, encoding, blocks=1)
        data = (tmp_path / "codes").read_bytes()
        (length,) = struct.unpack_from("<I", data, 12)
        # A file has a start, a header, the head of its block, the payload, and an end.
        sizes[encoding] = len(data) - 20 - length - 12 - 16
    assert sizes["packed"] == len(codes) * packed_width(LATENTS)
    assert sizes["sparse"] == 4 * len(codes) + 2 * int(codes.sum())


def test_differences_are_few_where_latents_are_nearly_always_active(tmp_path: Path):
    for encoding in ("sparse", "difference"):
        write(tmp_path / encoding, SOURCES["most"], encoding)
    lengths = [(tmp_path / encoding).stat().st_size for encoding in ("sparse", "difference")]
    assert lengths[1] < lengths[0] - 1000


@pytest.mark.parametrize("encoding", ["packed", "sparse", "sparse, zstandard"])
def test_every_changed_byte_is_noticed(encoding: str, tmp_path: Path):
    write(tmp_path / "codes", SOURCES["some"][:9], encoding)
    whole = (tmp_path / "codes").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        (tmp_path / "codes").write_bytes(damaged)
        with pytest.raises(CodeFileError, match="codes"):
            list(read_codes(tmp_path / "codes"))


def test_every_cut_is_noticed_and_what_came_before_is_read(tmp_path: Path):
    codes = SOURCES["some"]
    write(tmp_path / "codes", codes, "packed", blocks=2)
    whole = (tmp_path / "codes").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "codes").write_bytes(whole[:length])
        with pytest.raises(CodeFileError, match="ends in"):
            list(read_codes(tmp_path / "codes"))
    (tmp_path / "codes").write_bytes(whole[:-1])
    blocks = read_codes(tmp_path / "codes")
    assert torch.equal(torch.cat([next(blocks), next(blocks)]), pack(codes))


def test_a_block_that_claims_more_than_memory_holds_is_not_read(tmp_path: Path):
    path = tmp_path / "codes"
    write(path, SOURCES["some"], "packed", blocks=1)
    content = bytearray(path.read_bytes())
    start = struct.calcsize("<8sIII")
    start += struct.unpack_from("<I", content, struct.calcsize("<8sI"))[0]
    assert struct.unpack_from("<I", content, start) == (50,)
    struct.pack_into("<I", content, start, 2**32 - 1)
    path.write_bytes(content)
    with pytest.raises(CodeFileError, match="block 0 claims 4294967295 tokens"):
        list(read_codes(path))


def test_blocks_that_changed_places_are_noticed(tmp_path: Path):
    write(tmp_path / "codes", SOURCES["some"][:20], "packed", blocks=2)
    whole = (tmp_path / "codes").read_bytes()
    (length,) = struct.unpack_from("<I", whole, 12)
    start, size = 20 + length, 12 + 10 * packed_width(LATENTS)
    first, second = whole[start : start + size], whole[start + size : start + 2 * size]
    assert first != second
    changed = whole[:start] + second + first + whole[start + 2 * size :]
    (tmp_path / "codes").write_bytes(changed)
    with pytest.raises(CodeFileError, match="in another order"):
        list(read_codes(tmp_path / "codes"))


def test_other_files_and_newer_ones_are_named(tmp_path: Path):
    path = tmp_path / "codes"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CodeFileError, match="begins with"):
        read_header(path)
    write(path, SOURCES["some"])
    whole = bytearray(path.read_bytes())
    whole[8] = 2
    path.write_bytes(whole)
    with pytest.raises(CodeFileError, match="has version 2, and this package reads 1"):
        read_header(path)


def test_an_interrupted_writer_leaves_the_old_file(tmp_path: Path):
    write(tmp_path / "codes", SOURCES["some"])
    before = (tmp_path / "codes").read_bytes()

    def interrupted() -> None:
        with CodeWriter(tmp_path / "codes", header_of(LATENTS, "packed")) as writer:
            writer.write(pack(SOURCES["most"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "codes").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "packed", [torch.zeros(0, 3).byte(), torch.zeros(2, 4).byte(), torch.zeros(3).byte()]
)
def test_blocks_of_another_shape_are_refused(packed: Tensor, tmp_path: Path):
    with (
        CodeWriter(tmp_path / "codes", header_of(LATENTS, "packed")) as writer,
        pytest.raises(ValueError, match="and 3 bytes for each"),
    ):
        writer.write(packed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"encoding": "zip"}, "encoding='zip'"), ({"mean_code": "00"}, "mean_code: has 1 bytes")],
)
def test_headers_that_make_no_sense_are_refused(fields: dict[str, str], message: str):
    settings = vars(header_of(LATENTS, "packed")) | fields
    with pytest.raises(ValueError, match=message):
        CodeHeader(**settings)
