"""Reads state dicts and whole modules that torch.save wrote, and runs no code of the file.

torch's own reader refuses whole modules. That reader also allocates the sizes that an old file
states before it looks at values. Here a tensor is made only from bytes in the file, on the CPU.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.pickles import Made, Name, PickleError, read_pickle

DTYPES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}  # fmt: skip
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}
# Start of files before torch 1.6, or written with _use_new_zipfile_serialization=False.
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001
MOST_MODULES = 1000
OTHER_BYTE_ORDER = "comes from a processor of the other byte order"

ReadStorage = Callable[[str], bytes]


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a storage of the file. offset, size and stride count values."""

    storage: str
    dtype: torch.dtype
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()


class Saved(NamedTuple):
    """A state dict. places has a StoredTensor for each tensor, and all other values unchanged.

    attributes come from a whole module: text, numbers, and class names of parts without tensors.
    """

    places: dict[str, Any]
    read_storage: ReadStorage
    attributes: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        """Read a tensor, on the CPU. PickleError if it is no plain tensor of this file."""
        place = self.places[name]
        if not isinstance(place, StoredTensor):
            raise PickleError(f"{name} is no plain tensor")
        try:
            data = bytearray(self.read_storage(place.storage))
            whole = torch.frombuffer(data, dtype=place.dtype) if data else torch.empty(0)
            steps = zip(place.size, place.stride, strict=True)
            last = place.offset + sum((count - 1) * stride for count, stride in steps)
            # A file can claim any size for a view of few values.
            if 0 in place.size or max(math.prod(place.size), last + 1) > len(whole):
                raise PickleError(f"{list(place.size)} of {len(whole)} values")
            return whole.as_strided(place.size, place.stride, place.offset).contiguous()
        # A damaged archive can raise any error.
        except Exception as error:
            raise PickleError(f"{name} is no plain tensor of this file: {error}") from error


def read_saved(path: Path) -> Saved:
    """Read what torch.save wrote. OSError or PickleError if the file is damaged."""
    root, read_storage = (_read_archive if zipfile.is_zipfile(path) else _read_old)(path)
    if isinstance(root, Made) and isinstance(root.state, dict):
        return _module(root, read_storage)
    if not isinstance(root, dict):
        raise PickleError(f"holds {_kind(root)}, neither a state dict nor a module")
    return Saved({str(name): value for name, value in root.items()}, read_storage, {})


def _read_archive(path: Path) -> tuple[Any, ReadStorage]:
    with zipfile.ZipFile(path) as archive:
        # A small compressed file can expand to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise PickleError("is compressed, and torch.save does not compress")
        size = path.stat().st_size
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise PickleError(f"claims to hold more than its {size} bytes")
        roots = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise PickleError(f"has {len(roots)} data.pkl where torch.save writes one")
        prefix = roots[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PickleError(OTHER_BYTE_ORDER)
        root = read_pickle(io.BytesIO(archive.read(roots[0])), _make, lambda it: _storage(it, {}))

    def read_storage(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{prefix}data/{key}")

    return root, read_storage


def _read_old(path: Path) -> tuple[Any, ReadStorage]:
    with path.open("rb") as stream:
        if (read_pickle(stream), read_pickle(stream)) != (OLD_MAGIC, OLD_VERSION):
            raise PickleError("was not written by torch.save")
        system = read_pickle(stream)
        if not isinstance(system, dict) or not system.get("little_endian"):
            raise PickleError(OTHER_BYTE_ORDER)
        dtypes: dict[str, torch.dtype] = {}
        root = read_pickle(stream, _make, lambda saved: _storage(saved, dtypes))
        keys = read_pickle(stream)
        if not isinstance(keys, list) or not set(keys) <= dtypes.keys():
            raise PickleError("holds values that belong to no tensor")
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


def _storage(saved: Any, dtypes: dict[str, torch.dtype]) -> Any:
    """A stand-in for the object of a persistent id. Adds the dtype of a storage to dtypes."""
    kind, *rest = saved
    if kind == "module":  # old files store a class and its source text
        return rest[0]
    named, key, *others = rest
    known = isinstance(named, Name) and named.name in DTYPES
    if kind != "storage" or not known or any(others[2:]):
        raise PickleError(f"holds values of {_kind(named)}")
    dtypes[key] = DTYPES[named.name]
    return StoredTensor(str(key), dtypes[key])


def _make(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name in PARAMETERS:
        return arguments[0]
    if name not in TENSORS:
        return Made(name, arguments)
    storage, offset, size, stride = arguments[:4]
    counts = (offset, *size, *stride)
    if not isinstance(storage, StoredTensor) or any(type(n) is not int or n < 0 for n in counts):
        raise PickleError(f"{name} of {_kind(storage)}")
    return replace(storage, offset=offset, size=tuple(size), stride=tuple(stride))


def _module(root: Made, read_storage: ReadStorage) -> Saved:
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
        held = _table(module, "_parameters") | _table(module, "_buffers")
        places |= {f"{prefix}{name}": value for name, value in held.items() if value is not None}
        waiting += [(f"{prefix}{name}.", part) for name, part in _parts(module).items()]
    parts = _parts(root)
    # DataParallel wraps a module. The attributes to read are those of the inner module.
    inner = parts["module"] if list(parts) == ["module"] else root
    attributes = {
        name: value
        for name, value in inner.state.items()
        if isinstance(name, str) and isinstance(value, str | int | float)
    }
    for name, part in _parts(inner).items():
        if not _table(part, "_parameters"):
            attributes[name] = part.name.rpartition(".")[2].lower()
    return Saved(places, read_storage, attributes)


def _parts(module: Made) -> dict[str, Made]:
    return {
        name: part
        for name, part in _table(module, "_modules").items()
        if isinstance(part, Made) and isinstance(part.state, dict)
    }


def _table(module: Made, name: str) -> dict[str, Any]:
    table = module.state.get(name)
    return table if isinstance(table, dict) else {}


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Made | Name) else type(value).__name__
