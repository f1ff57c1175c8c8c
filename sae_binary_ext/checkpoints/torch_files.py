"""Reads what torch.save wrote, state dicts and whole modules, without running anything of it.

torch's own reader refuses whole modules, and allocates what an old file says before it looks at the
file. Here, tensors are made only of bytes that the file holds, on the CPU whatever they were on.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.pickles import Made, Name, PickleError, read_pickle

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}
# What torch.save wrote before torch 1.6, and writes without _use_new_zipfile_serialization.
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001
MOST_MODULES = 1000


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's values lie in a file.

    Attributes:
        key: of its storage.
        dtype: of its values.
        offset, size, stride: of the tensor in its storage, counted in values.
    """

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, data: bytes) -> Tensor:
        """The tensor, out of its storage's bytes.

        Raises:
            PickleError: it would be larger than its storage, or lie outside of it.
        """
        whole = torch.frombuffer(bytearray(data), dtype=self.dtype) if data else torch.empty(0)
        steps = zip(self.size, self.stride, strict=True)
        last = self.offset + sum((count - 1) * stride for count, stride in steps)
        # A view can claim to be any size.
        if 0 in self.size or math.prod(self.size) > len(whole) or last >= len(whole):
            raise PickleError(f"{list(self.size)} of {len(whole)} values")
        return whole.as_strided(self.size, self.stride, self.offset).contiguous()


@dataclass(frozen=True)
class Saved:
    """A file's tensors, by their names in the state dict.

    Attributes:
        places: what the file has under each name; no StoredTensor where that is no plain tensor.
        attributes: of a whole module: text, numbers, and the class names of parts without tensors.
    """

    places: dict[str, Any]
    read_storage: Callable[[str], bytes]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    def tensor(self, name: str) -> Tensor:
        """A tensor, on the CPU.

        Raises:
            PickleError: it is no plain tensor of this file.
        """
        place = self.places[name]
        if not isinstance(place, StoredTensor):
            raise PickleError(f"{name} is no plain tensor")
        try:
            return place.of(self.read_storage(place.key))
        # An archive raises whatever its damage leads to.
        except Exception as error:
            raise PickleError(f"{name} is no plain tensor of this file: {error}") from error


def read_saved(path: Path) -> Saved:
    """What torch.save wrote.

    Raises:
        PickleError: the file is damaged, compressed, or holds neither state dict nor module.
        OSError: it cannot be read.
    """
    if zipfile.is_zipfile(path):
        root, read_storage = _read_archive(path)
    else:
        root, read_storage = _read_old(path)
    if isinstance(root, Made) and isinstance(root.state, dict):
        return _module(root, read_storage)
    if not isinstance(root, dict):
        raise PickleError(f"holds {_kind(root)}, neither a state dict nor a module")
    return Saved({str(name): value for name, value in root.items()}, read_storage)


def _read_archive(path: Path) -> tuple[Any, Callable[[str], bytes]]:
    with zipfile.ZipFile(path) as archive:
        # Compressed, a small file could grow without bounds.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise PickleError("is compressed; torch.save does not")
        size = path.stat().st_size
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise PickleError(f"claims to hold more than its {size} bytes")
        roots = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise PickleError(f"has {len(roots)} data.pkl where torch.save writes one")
        prefix = roots[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PickleError("comes from a processor of the other byte order")
        root = read_pickle(io.BytesIO(archive.read(roots[0])), _make, lambda it: _storage(it, {}))

    def read_storage(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{prefix}data/{key}")

    return root, read_storage


def _read_old(path: Path) -> tuple[Any, Callable[[str], bytes]]:
    with path.open("rb") as stream:
        if (read_pickle(stream), read_pickle(stream)) != (OLD_MAGIC, OLD_VERSION):
            raise PickleError("is no file of torch.save")
        system = read_pickle(stream)
        if not isinstance(system, dict) or not system.get("little_endian"):
            raise PickleError("comes from a processor of the other byte order")
        dtypes: dict[str, torch.dtype] = {}
        root = read_pickle(stream, _make, lambda saved: _storage(saved, dtypes))
        keys = read_pickle(stream)
        if not isinstance(keys, list) or not set(keys) <= dtypes.keys():
            raise PickleError("holds values of no tensor")
        places: dict[str, tuple[int, int]] = {}
        size = path.stat().st_size
        for key in keys:
            (count,) = struct.unpack("<q", stream.read(8))
            start, length = stream.tell(), count * dtypes[key].itemsize
            if count < 0 or start + length > size:
                raise PickleError(f"claims to hold more than its {size} bytes")
            places[key] = start, length
            stream.seek(length, io.SEEK_CUR)

    def read_storage(key: str) -> bytes:
        start, length = places[key]
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return root, read_storage


@dataclass(frozen=True)
class _Storage:
    """Values that lie beside the pickle."""

    key: str
    dtype: torch.dtype


def _storage(saved: Any, dtypes: dict[str, torch.dtype]) -> Any:
    """What stands for the object of a persistent id; notes the dtype of a storage."""
    kind, *rest = saved
    if kind == "module":  # of old files: a class, and its source text
        return rest[0]
    named, key = rest[:2]
    view = rest[4:]
    if kind != "storage" or not isinstance(named, Name) or named.name not in DTYPES or any(view):
        raise PickleError(f"holds values of {_kind(rest[0])}")
    dtypes[key] = DTYPES[named.name]
    return _Storage(str(key), DTYPES[named.name])


def _make(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name in PARAMETERS:
        return arguments[0]
    if name not in TENSORS:
        return Made(name, arguments)
    storage, offset, size, stride = arguments[:4]
    whole = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in whole):
        raise PickleError(f"{name} of {_kind(storage)}")
    return StoredTensor(storage.key, storage.dtype, offset, tuple(size), tuple(stride))


def _module(root: Made, read_storage: Callable[[str], bytes]) -> Saved:
    """The state dict that a module would have."""
    places: dict[str, Any] = {}
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if len(seen) > MOST_MODULES:
            raise PickleError(f"holds a module of more than {MOST_MODULES} parts")
        for group in ("_parameters", "_buffers"):
            held = _table(module, group).items()
            places |= {f"{prefix}{name}": value for name, value in held if value is not None}
        waiting += [(f"{prefix}{name}.", part) for name, part in _parts(module).items()]
    inner = root
    # Of DataParallel the module inside.
    if list(_parts(root)) == ["module"]:
        inner = _parts(root)["module"]
    return Saved(places, read_storage, _attributes(inner))


def _attributes(module: Made) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in module.state.items()
        if isinstance(name, str) and isinstance(value, str | int | float)
    }
    empty = {
        name: _kind(part).rpartition(".")[2].lower()
        for name, part in _parts(module).items()
        if not _table(part, "_parameters")
    }
    return {**plain, **empty}


def _parts(module: Made) -> dict[str, Made]:
    parts = _table(module, "_modules").items()
    return {
        name: part
        for name, part in parts
        if isinstance(part, Made) and isinstance(part.state, dict)
    }


def _table(module: Made, name: str) -> dict[str, Any]:
    table = module.state.get(name)
    return table if isinstance(table, dict) else {}


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Made | Name) else type(value).__name__
