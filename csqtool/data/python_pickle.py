"""Reads the pickles that CIFAR's python layout consists of, without unpickling anything.

Those files were written by Python 2 at protocol 2 and hold one dict of text, lists of numbers or text, and one numpy
array of bytes. `pickletools` splits such a file into operations; the few that build these things are carried out
here, on values of our own. Nothing that a file names is imported or called: the three names that belong to a numpy
array are known as text and stand for the steps below, every other name is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import DataError

# The largest real file, CIFAR-100's `train`, has 155 MB. The limit keeps memory bounded: what is built here is a
# small multiple of the file, since no operation of ours repeats what was read.
MAX_FILE_BYTES = 512 * 2**20

RECONSTRUCT = "numpy.core.multiarray _reconstruct"
NDARRAY = "numpy ndarray"
DTYPE = "numpy dtype"


@dataclass(frozen=True)
class _Name:
    """A name that the file may use; never the object behind it."""

    text: str


class _Bytes8:
    """Numpy's dtype of single bytes."""


class _Array:
    """An array under construction; `value` comes with its state."""

    value: NDArray[np.uint8] | None = None


_MARK = object()


def read_dict(content: bytes, *, where: str) -> dict[str, Any]:
    """Return the dict in the bytes of a pickle: text to text, numbers, lists or uint8 arrays.

    Args:
        content: the whole file.
        where: its name, for messages.

    Raises:
        DataError: it is damaged, too large, or holds anything else than such a dict.
    """
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{where}: {len(content)} bytes, more than any CIFAR file has")
    try:
        result = _run(content)
    except _RefusedError as error:
        raise DataError(f"{where}: refused, it holds {error}; no CIFAR file does") from error
    except (ValueError, TypeError, IndexError, KeyError, UnicodeError, MemoryError, OverflowError) as error:
        raise DataError(f"{where} is no pickle of CIFAR's python layout, or is damaged: {error}") from error
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise DataError(f"{where}: expected a dict with text as keys, got {type(result).__name__}")
    return {key: value.value if isinstance(value, _Array) else value for key, value in result.items()}


class _RefusedError(Exception):
    """The file holds something that this reader does not carry out."""


class _Machine:
    """The stack and the memo of a pickle, and a method for each operation that is carried out."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is needed")
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        self.stack.pop()
        return values[::-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"expected a {kind.__name__}, got {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def protocol(self, version: int) -> None:
        if version != 2:
            raise _RefusedError(f"a pickle of protocol {version}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def tuple_of(self, length: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(length)][::-1]))

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        self.top(dict).update(zip(values[::2], values[1::2], strict=True))

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def name(self, text: str) -> None:
        if text not in (RECONSTRUCT, NDARRAY, DTYPE):
            raise _RefusedError(f"the name {text.replace(' ', '.')!r}")
        self.stack.append(_Name(text))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(_call(function, arguments))

    def build(self) -> None:
        state = self.pop()
        _set_state(self.stack[-1], state)


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"), _Machine.push),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": lambda machine, key: machine.push(machine.memo[key]),
    "LONG_BINGET": lambda machine, key: machine.push(machine.memo[key]),
    "GLOBAL": _Machine.name,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def _run(content: bytes) -> Any:
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "STOP":
            result = machine.pop()
            if machine.stack:
                raise ValueError("values are left over at its end")
            return result
        if operation.name not in _OPERATIONS:
            raise _RefusedError(f"the operation {operation.name}")
        _OPERATIONS[operation.name](machine, argument)
    raise ValueError("it has no end")


def _call(function: Any, arguments: Any) -> Any:
    """Carry out a call of one of the three known names, with the arguments that a byte array comes with."""
    match function, arguments:
        case _Name(text="numpy dtype"), ("u1", _, _):
            return _Bytes8()
        case _Name(text="numpy.core.multiarray _reconstruct"), (_Name(text="numpy ndarray"), (0,), "b"):
            return _Array()
    raise _RefusedError("a call other than that which makes an array of bytes")


def _set_state(target: Any, state: Any) -> None:
    """Give an array its shape and content; a dtype of single bytes has nothing to be told."""
    match target, state:
        case _Bytes8(), tuple():
            return
        case _Array(), (1, tuple() as shape, _Bytes8(), bool() | int() as column_major, str() as data):
            if not all(isinstance(n, int) and n >= 0 for n in shape) or prod(shape) != len(data):
                raise ValueError(f"{len(data)} bytes for an array of shape {shape}")
            values = np.frombuffer(data.encode("latin-1"), np.uint8)  # genops decodes Python 2's strings as latin-1
            target.value = values.reshape(shape, order="F" if column_major else "C")
        case _:
            raise _RefusedError("an object other than an array of bytes")
