"""Reads pickles without the module pickle. Nothing that a file names is imported or run.

Containers, text and numbers become Python objects. A call of a class or function becomes a Made,
which only records the call. A caller of this module can put other objects in place of the call.
"""

import io
import pickletools
import re
import struct
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, BinaryIO

# Limit of memory: each opcode makes at most a few hundred bytes, beside the text of a string.
MOST_OPCODES = 2**23
# Training curves are long lists of floats. Each float is the letter G and eight bytes.
FLOAT_BYTES = 9
FLOAT_RUN = re.compile(rb"(?:G.{8})*", re.DOTALL)
FLOATS_AT_ONCE = 4096
# Floats beyond this number are left out: configs have fewer, and curves are not read.
MOST_FLOATS = 2**22

CONSTANTS: dict[str, Any] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_DICT": {}, "EMPTY_LIST": [],
    "EMPTY_TUPLE": (),
}  # fmt: skip
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES",
}  # fmt: skip
# How many items each of these opcodes takes from the top of the stack.
ITEMS = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# These opcodes take all items above the last mark.
OF_MARK = {"TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"}
STORES, FETCHES = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
KEYS = (str, bytes, int, float, type(None))
# The names of numpy's numbers in numpy 1 and in numpy 2.
SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
# struct's letter for each of numpy's dtypes.
LETTERS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


class PickleError(ValueError):
    """The bytes are not a pickle, or the pickle asks for more than plain data."""


@dataclass(frozen=True)
class Name:
    """The module.name of a class or function in a pickle. The name is never looked up."""

    name: str


@dataclass
class Made:
    """A call that a pickle asks for, and the attributes that it sets. The call is never made."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


Make = Callable[[str, tuple[Any, ...]], Any]


def read_pickle(
    stream: BinaryIO, make: Make = Made, stored: Callable[[Any], Any] | None = None
) -> Any:
    """Read the data of one pickle, from the stream's position to the pickle's end.

    make gets the name of a class or function and its arguments, and returns a stand-in. stored gets
    a persistent id and returns a stand-in; None refuses ids. PickleError if the pickle is damaged.
    """
    try:
        return _Reader(stream, make, stored).read()
    except PickleError:
        raise
    # Damaged bytes can raise any error.
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
            stack.append(copy(CONSTANTS[name]))
        elif name in FETCHES:
            stack.append(self._memo[int(argument)])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in STORES:
            # A memo index above the position is wrong: no pickle has more objects than bytes.
            if not 0 <= int(argument) <= position:
                raise PickleError(f"{name} {argument} at byte {position}")
            self._memo[int(argument)] = stack[-1]
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ITEMS or name in OF_MARK:
            self._take_container(name)
        elif name not in ("PROTO", "FRAME"):
            self._take_call(name, argument)

    def _take_container(self, name: str) -> None:
        """Handle an opcode that makes or fills a container."""
        if name in ITEMS:
            items = self._stack[-ITEMS[name] :]
            del self._stack[-ITEMS[name] :]
        else:
            items, self._stack = self._stack, self._below.pop()
        if name.startswith("TUPLE"):
            self._stack.append(tuple(items))
        elif name == "LIST":
            self._stack.append(items)
        elif name == "DICT":
            self._stack.append(_with_items({}, items))
        elif name.startswith("SETITEM"):
            _with_items(self._stack[-1], items)
        elif type(self._stack[-1]) is list:
            self._stack[-1].extend(items)
        else:
            raise PickleError(f"{name} to {type(self._stack[-1]).__name__}")

    def _take_call(self, name: str, argument: Any) -> None:
        """Handle an opcode that names or calls a class or function."""
        if name == "GLOBAL":
            self._stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            name, module = self._stack.pop(), self._stack.pop()
            self._stack.append(Name(f"{module}.{name}"))
        elif name in ("REDUCE", "NEWOBJ"):
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
            raise PickleError(f"{name} is not an opcode of plain data")

    def _take_run_of_floats(self) -> None:
        """Read the floats that follow in the stream, thousands at a time."""
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
    """Turn a number or text of numpy into Python's, for read_pickle. PickleError for others."""
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
        # The hash of a deeply nested key can exhaust the processor's stack.
        if not isinstance(key, KEYS):
            raise PickleError(f"a key of {type(key).__name__}")
        target[key] = value
    return target
