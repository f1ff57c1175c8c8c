"""Reading files that anyone may have written: nothing is run, nothing unbounded is allocated."""

import json
import reprlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError

# A config holds a few dozen numbers and, at most, one firing rate a latent.
LARGEST_CONFIG_BYTES = 64 * 2**20
# No width or k comes near; it keeps products of two of them small numbers.
LARGEST_SIZE = 2**40
# The dtypes of a coder's tensors, by safetensors' names.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel, _BRIEFLY.maxlist, _BRIEFLY.maxstring, _BRIEFLY.maxother = 3, 80, 80, 80

T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """A config's bytes.

    Raises:
        CheckpointError: the file is missing, unreadable or far larger than any config.
    """
    with open_config(path, LARGEST_CONFIG_BYTES) as stream:
        return stream.read()


@contextmanager
def open_config(path: Path, most_bytes: int) -> Generator[BinaryIO]:
    """A config, open for reading.

    Raises:
        CheckpointError: the file is missing, unreadable or has more than most_bytes.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise CheckpointError(f"{path}: {size} bytes, and a config has at most {most_bytes}.")
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A config of JSON.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(read_bytes(path).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__} where a config is expected.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# Files of which only the header is here: the values of a repository's are not downloaded to
# describe it.
_HEADERS_ALONE: ContextVar[frozenset[Path]] = ContextVar("headers alone", default=frozenset())


@contextmanager
def headers_alone(paths: Iterable[Path]) -> Generator[None]:
    """Within it, read_tensors gives tensors of these files on the meta device, without values."""
    token = _HEADERS_ALONE.set(frozenset(paths))
    try:
        yield
    finally:
        _HEADERS_ALONE.reset(token)


def has_values(path: Path) -> bool:
    """Whether a weights file is here whole."""
    return path not in _HEADERS_ALONE.get()


def read_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after their names and shapes were found to be right.

    Args:
        path: the file.
        shapes: of every tensor that may stand in it.
        optional: names among them that may be missing.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, or holds other tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
            missing = shapes.keys() - found - set(optional)
            if missing or not found <= shapes.keys():
                raise CheckpointError(
                    f"{path}: holds {sorted(found)} where its config asks for {sorted(shapes)}."
                )
            for name in found:
                shape = tuple(file.get_slice(name).get_shape())
                if shape != shapes[name]:
                    raise CheckpointError(
                        f"{path}: {name} is {list(shape)} where its config asks for "
                        f"{list(shapes[name])}."
                    )
            if not has_values(path):
                return {name: _without_values(file.get_slice(name), path) for name in found}
            return {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError, KeyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error


def _without_values(tensor: Any, path: Path) -> Tensor:
    dtype = DTYPES.get(tensor.get_dtype())
    if dtype is None:
        raise CheckpointError(f"{path}: holds {tensor.get_dtype()} where floats are expected.")
    return torch.empty(tensor.get_shape(), dtype=dtype, device="meta")


class Fields:
    """A config's values, each taken once and found to be of its type."""

    def __init__(self, values: dict[str, Any], source: Path) -> None:
        self._values = dict(values)
        self._source = source

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of a field, or its default where the field is missing.

        Raises:
            CheckpointError: it is of another type, or missing without a default.
        """
        value = self._values.pop(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        # bool is an int to Python and not to a config.
        if type(value) is not kind:
            raise CheckpointError(
                f"{self._source}: {name}={shortened(value)} where {kind.__name__} is expected."
            )
        return value

    def take_size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        size = self.take(name, int, default)
        if not 1 <= size <= LARGEST_SIZE:
            raise CheckpointError(
                f"{self._source}: {name}={size} where 1 to {LARGEST_SIZE} is expected."
            )
        return size

    def take_choice(self, name: str, choices: dict[str, T], default: str | None = None) -> T:
        """What one of a few names stands for."""
        value = self.take(name, str, default)
        if value not in choices:
            raise CheckpointError(
                f"{self._source}: {name}={shortened(value)}: choose one of {sorted(choices)}."
            )
        return choices[value]

    def holds(self, name: str) -> bool:
        """Whether a field is there that nothing has taken yet."""
        return name in self._values

    def skip(self, name: str, kinds: tuple[type, ...]) -> None:
        """Take a field that may be missing and is not read here.

        Raises:
            CheckpointError: it is of none of these types.
        """
        if name in self._values and type(value := self._values.pop(name)) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise CheckpointError(
                f"{self._source}: {name}={shortened(value)} where {expected} is expected."
            )

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Raise CheckpointError where fields are left that nothing has taken or may ignore."""
        left = sorted(self._values.keys() - set(ignored))
        if left:
            raise CheckpointError(
                f"{self._source}: unknown fields {shortened(left)}. A newer version of the "
                "package that wrote it may know them."
            )


def shortened(value: Any) -> str:
    """A value in 80 characters, however deep and long it is."""
    text = _BRIEFLY.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def clearly(source: Path, call: Callable[[], T]) -> T:
    """What a call returns, its complaint about a value being one about this file.

    Raises:
        CheckpointError: the call raised ValueError.
    """
    try:
        return call()
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, CheckpointError) and str(error).startswith(str(source)):
            raise
        raise CheckpointError(f"{source}: {error}") from error


@contextmanager
def host_errors(folder: Path) -> Generator[None]:
    """Inside it, any error of a host becomes a CheckpointError about the folder."""
    try:
        yield
    except (CheckpointError, ModuleNotFoundError):
        raise
    # A host can raise any error for an unexpected value.
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{folder}: its host cannot have it: {told}") from error
