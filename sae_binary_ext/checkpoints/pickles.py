"""Reads pickles without pickle: nothing that a file names is imported, called or run.

An opcode of a pickle is data here. Containers, text and numbers become what they are; whatever a
pickle would have a class or function make becomes a note of it (Made), unless the caller knows the
name and makes something of its own.
"""

import io
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

# A number, text or container each, of at most a few hundred bytes beside the text itself.
MOST_OPCODES = 2**23
# Lists of floats, as training curves are, come in runs of them: "G" and eight bytes each.
FLOAT_BYTES = 9
FLOAT_RUN = re.compile(rb"(?:G.{8})*", re.DOTALL)
FLOATS_AT_ONCE = 4096
# Further floats of long lists are left out: no config has as many, and nobody reads the curves.
MOST_FLOATS = 2**22

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES",
}  # fmt: skip
CONTAINERS = {"TUPLE", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORES, FETCHES = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
CALLS = {"REDUCE", "NEWOBJ"}
KEYS = (str, bytes, int, float, type(None))
# Of numpy's numbers, by numpy 1 and by numpy 2.
SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
# struct's letter for each of numpy's dtypes.
LETTERS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


class PickleError(ValueError):
    """Bytes are no pickle, or one that asks for something that data does not need."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, as module.name. It is never looked up."""

    name: str


@dataclass
class Made:
    """What a pickle would have a class or function make. It is never made.

    Attributes:
        name: of the class or function.
        arguments: it would be called with.
        state: its attributes, where the pickle sets them.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


Make = Callable[[str, tuple[Any, ...]], Any]


def read_pickle(
    stream: BinaryIO, make: Make = Made, stored: Callable[[Any], Any] | None = None
) -> Any:
    """The data of one pickle.

    Args:
        stream: at the pickle's start; left at its end.
        make: (name of a class or function, arguments) to what stands for its result.
        stored: (persistent id) to what stands for the object beside the pickle; None refuses ids.

    Raises:
        PickleError: damaged, or opcodes that no data needs.
    """
    reader = _Reader(stream, make, stored)
    try:
        return reader.read()
    except PickleError:
        raise
    # Damage raises whatever it leads to.
    except Exception as error:
        raise PickleError(f"damaged after byte {stream.tell()}: {error}") from error


class _Reader:
    """The stack machine of a pickle."""

    def __init__(self, stream: BinaryIO, make: Make, stored: Callable[[Any], Any] | None) -> None:
        self._stream, self._make, self._stored = stream, make, stored
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._floats = 0

    def read(self) -> Any:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(self._stream)):
            if count > MOST_OPCODES:
                raise PickleError(f"more than {MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._take(opcode.name, argument, position or 0)
        raise PickleError("has no end")

    def _take(self, name: str, argument: Any, position: int) -> None:
        stack = self._stack
        if name in LITERALS:
            stack.append(argument)
            if name == "BINFLOAT":
                self._take_run_of_floats()
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in FETCHES:
            stack.append(self._memo[int(argument)])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in STORES:
            # No pickle has more objects than bytes.
            if not 0 <= int(argument) <= position:
                raise PickleError(f"{name} {argument} at byte {position}")
            self._memo[int(argument)] = stack[-1]
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in TUPLES:
            items = tuple(stack[-TUPLES[name] :])
            del stack[-TUPLES[name] :]
            stack.append(items)
        elif name in CONTAINERS:
            self._take_container(name)
        elif name not in ("PROTO", "FRAME"):
            self._take_call(name, argument)

    def _take_container(self, name: str) -> None:
        """Containers of what lies above the last mark, and the two opcodes for one item."""
        if name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = self._stack[-count:]
            del self._stack[-count:]
        else:
            items, self._stack = self._stack, self._below.pop()
        if name == "TUPLE":
            self._stack.append(tuple(items))
        elif name == "LIST":
            self._stack.append(items)
        elif name == "DICT":
            self._stack.append(_with_items({}, items))
        elif name.startswith("APPEND"):
            if type(self._stack[-1]) is not list:
                raise PickleError(f"{name} to {type(self._stack[-1]).__name__}")
            self._stack[-1].extend(items)
        else:
            _with_items(self._stack[-1], items)

    def _take_call(self, name: str, argument: Any) -> None:
        """Classes, functions, and what they would make."""
        if name == "GLOBAL":
            self._stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            name, module = self._stack.pop(), self._stack.pop()
            self._stack.append(Name(f"{module}.{name}"))
        elif name in CALLS:
            arguments, called = self._stack.pop(), self._stack.pop()
            if not isinstance(called, Name) or not isinstance(arguments, tuple):
                raise PickleError(f"{name} of {type(called).__name__}")
            self._stack.append(self._make(called.name, arguments))
        elif name == "BUILD":
            state = self._stack.pop()
            if isinstance(self._stack[-1], Made):
                self._stack[-1].state = state
        elif name == "BINPERSID" and self._stored is not None:
            self._stack.append(self._stored(self._stack.pop()))
        else:
            raise PickleError(f"{name} is no part of plain data")

    def _take_run_of_floats(self) -> None:
        """The floats that follow, thousands at a time."""
        while True:
            block = self._stream.read(FLOAT_BYTES * FLOATS_AT_ONCE)
            found = FLOAT_RUN.match(block)
            length = 0 if found is None else found.end()
            self._stream.seek(length - len(block), io.SEEK_CUR)
            count = length // FLOAT_BYTES
            self._floats += count
            if self._floats <= MOST_FLOATS:
                self._stack += struct.unpack(">" + "xd" * count, block[:length])
            if count < FLOATS_AT_ONCE:
                return


def make_number(name: str, arguments: tuple[Any, ...]) -> Any:
    """Numpy's numbers and text as Python's own; for read_pickle.

    Raises:
        PickleError: a pickle asks for anything else to be made.
    """
    if name == "numpy.dtype":
        return Made(name, arguments)
    if name == "_codecs.encode" and arguments[1:] == ("latin1",):
        return arguments[0].encode("latin1")
    if name in SCALARS:
        dtype, data = arguments
        code, order = dtype.arguments[0], dtype.state[1]
        if code in LETTERS:
            return struct.unpack((">" if order == ">" else "<") + LETTERS[code], data)[0]
        if code.startswith("U"):
            return data.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    raise PickleError(f"asks to run code or build objects ({name})")


def _with_items(target: Any, items: list[Any]) -> dict[Any, Any]:
    if type(target) is not dict:
        raise PickleError(f"items of {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Others' hashes take time, or the stack, as long as they are deep.
        if not isinstance(key, KEYS):
            raise PickleError(f"a key of {type(key).__name__}")
        target[key] = value
    return target
