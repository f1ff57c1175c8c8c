"""Reads files that anyone may have written, without running code or trusting sizes in them."""

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

# A config holds a few dozen numbers and at most one firing rate for each latent.
LARGEST_CONFIG_BYTES = 64 * 2**20
# Largest size that a config may state, far above any real width or k.
LARGEST_SIZE = 2**40
# The dtypes that a coder's tensors may have, by their names in safetensors.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel, _BRIEFLY.maxlist, _BRIEFLY.maxstring, _BRIEFLY.maxother = 3, 80, 80, 80
# Files whose values were not downloaded: only their headers are on this machine.
_HEADERS_ALONE: ContextVar[frozenset[Path]] = ContextVar("headers alone", default=frozenset())

T = TypeVar("T")


@contextmanager
def open_config(path: Path, most_bytes: int) -> Generator[BinaryIO]:
    """Open a config. CheckpointError if the file is unreadable or larger than most_bytes."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise CheckpointError(f"{path}: {size} bytes, and a config has at most {most_bytes}.")
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a config in JSON. CheckpointError if it cannot be read or is no JSON object."""
    with open_config(path, LARGEST_CONFIG_BYTES) as stream:
        try:
            value = json.loads(stream.read().decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__} where a config is expected.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


@contextmanager
def headers_alone(paths: Iterable[Path]) -> Generator[None]:
    """A context in which read_tensors gives meta tensors for `paths`, files without values."""
    token = _HEADERS_ALONE.set(frozenset(paths))
    try:
        yield
    finally:
        _HEADERS_ALONE.reset(token)


def has_values(path: Path) -> bool:
    """Whether a weights file on this machine has its values, and not only its header."""
    return path not in _HEADERS_ALONE.get()


def read_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Read a safetensors file. CheckpointError if names (except optional ones) or shapes differ."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if not shapes.keys() - set(optional) <= found.keys() <= shapes.keys():
                raise CheckpointError(
                    f"{path}: holds {sorted(found)} where its config asks for {sorted(shapes)}."
                )
            for name, tensor in found.items():
                if tuple(tensor.get_shape()) != shapes[name]:
                    raise CheckpointError(
                        f"{path}: {name} is {list(tensor.get_shape())} where its config asks for "
                        f"{list(shapes[name])}."
                    )
            if has_values(path):
                return {name: file.get_tensor(name) for name in found}
            dtypes = {name: tensor.get_dtype() for name, tensor in found.items()}
    except (SafetensorError, OSError, KeyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}.") from error
    if others := sorted(set(dtypes.values()) - DTYPES.keys()):
        raise CheckpointError(f"{path}: holds {', '.join(others)} where floats are expected.")
    return {
        name: torch.empty(shapes[name], dtype=DTYPES[dtype], device="meta")
        for name, dtype in dtypes.items()
    }


class Fields:
    """The fields of a config. Each field is taken once, and its value must have the right type."""

    def __init__(self, values: dict[str, Any], source: Path) -> None:
        self._values = dict(values)
        self._source = source

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        told = f"{name}={shortened(value)} where {expected} is expected."
        return CheckpointError(f"{self._source}: {told}")

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Take the value of a field. A field without a default must be in the config."""
        value = self._values.pop(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        # In Python a bool is an int. In a config, a bool is not a number.
        if type(value) is not kind:
            raise self._wrong(name, value, kind.__name__)
        return value

    def take_size(self, name: str, default: int | None = None) -> int:
        """Take a field whose value is a whole number of at least 1."""
        size = self.take(name, int, default)
        if not 1 <= size <= LARGEST_SIZE:
            raise self._wrong(name, size, f"1 to {LARGEST_SIZE}")
        return size

    def take_choice(self, name: str, choices: dict[str, T], default: str | None = None) -> T:
        """Take a field whose value is a key of `choices`. Returns the choice of that key."""
        value = self.take(name, str, default)
        if value not in choices:
            raise self._wrong(name, value, f"one of {sorted(choices)}")
        return choices[value]

    def skip(self, name: str, kinds: tuple[type, ...]) -> bool:
        """Take a field whose value is not needed. Returns whether the config has the field."""
        if name not in self._values:
            return False
        if type(value := self._values.pop(name)) not in kinds:
            raise self._wrong(name, value, " or ".join(kind.__name__ for kind in kinds))
        return True

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Raise CheckpointError if the config has fields that were neither taken nor ignored."""
        if left := sorted(self._values.keys() - set(ignored)):
            raise CheckpointError(
                f"{self._source}: unknown fields {shortened(left)}. If a newer version of its "
                "package wrote it, install that version."
            )


def shortened(value: Any) -> str:
    """The repr of a value in at most 80 characters, however deep or long the value is."""
    text = _BRIEFLY.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def clearly(source: Path, call: Callable[[], T]) -> T:
    """Return call(). Turn its errors about a value into a CheckpointError that names the source."""
    try:
        return call()
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, CheckpointError) and str(error).startswith(str(source)):
            raise
        raise CheckpointError(f"{source}: {error}") from error


@contextmanager
def errors_told(problem: str) -> Generator[None]:
    """A context in which any error of another library becomes a CheckpointError with `problem`."""
    try:
        yield
    except (CheckpointError, ModuleNotFoundError):
        raise
    # A host can raise any error for an unexpected value. huggingface_hub also raises the errors of
    # its HTTP library, which depends on the version of huggingface_hub.
    except Exception as error:
        raise CheckpointError(f"{problem}: {type(error).__name__}: {error}") from error
