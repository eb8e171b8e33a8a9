"""Reads the pickles that CIFAR's python layout consists of; nothing that a file names is ever called.

Such a file holds one dict of text, lists of numbers or text, and one numpy array of bytes. Python 2 wrote it at
protocol 2; copies written by Python 3 have protocol 3 or 4. A file is looked through first, operation by operation:
it may hold only the operations of such a dict, and only so many that neither memory nor the stack can run out. Then
`pickle` reads it, and gets for numpy's names the two classes below in their place.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter
from math import prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import DataError

# CIFAR-100's `train`, the largest real file, has 155 MB, some 400,000 operations, 14 containers and 2 calls.
MAX_FILE_BYTES = 256 * 2**20
MAX_OPERATIONS = 2_000_000
MAX_CONTAINERS = 64  # no value can be nested deeper than this
MAX_CALLS = 8

PROTOCOLS = (2, 3, 4)
CONTAINERS = frozenset({"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"})
STORES = frozenset({"BINPUT", "LONG_BINPUT"})
PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip


class _RefusedError(Exception):
    """The file holds something that no CIFAR file does."""


class _Bytes8:
    """Takes the place of numpy's dtype, for single bytes alone."""

    __slots__ = ()

    def __init__(self, code: str, align: Any = False, copy: Any = False) -> None:
        if code != "u1":
            raise _RefusedError("an array of something else than bytes")

    def __setstate__(self, state: Any) -> None:
        """Take a dtype's state, which says nothing more about single bytes."""


class _Array:
    """Takes the place of numpy's array and of the function that makes an empty one; `value` comes with its state."""

    __slots__ = ("value",)

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _Array or shape != (0,) or code not in ("b", b"b"):
            raise _RefusedError("a call other than that which makes an array of bytes")
        self.value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        """Take shape and content, as numpy's arrays give them."""
        match state:
            case (1, tuple() as shape, _Bytes8(), bool() | int() as column_major, str() | bytes() as data):
                if not all(type(n) is int and n >= 0 for n in shape) or prod(shape) != len(data):
                    raise ValueError(f"{len(data)} bytes for an array of shape {shape}")
                content = data.encode("latin-1") if isinstance(data, str) else data
                values = np.frombuffer(content, np.uint8)
                self.value = values.reshape(shape, order="F" if column_major else "C")
            case _:
                raise _RefusedError("an object other than an array of bytes")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # its name since numpy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Bytes8,
}


class _Unpickler(pickle.Unpickler):
    """Knows no other names than `ALLOWED`."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what takes the place of a name."""
        if (module, name) not in ALLOWED:
            raise _RefusedError(f"the name {f'{module}.{name}'!r:.100}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse objects that are kept outside of the file."""
        raise _RefusedError("an object that is kept outside of the file")


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
        _check_operations(content)
        result = _Unpickler(io.BytesIO(content), encoding="latin-1").load()
    except _RefusedError as error:
        raise DataError(f"{where}: refused, it holds {error}; no CIFAR file does") from error
    # Damaged pickles raise whatever their operations do on values that were not meant for them.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where} is no pickle of CIFAR's python layout, or is damaged: {reason:.200}") from error
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise DataError(f"{where}: expected a dict with text as keys, got {type(result).__name__}")
    return {key: value.value if isinstance(value, _Array) else value for key, value in result.items()}


def _check_operations(content: bytes) -> None:
    """Look through a pickle without carrying anything out.

    Raises:
        _RefusedError: it has other operations than a CIFAR file, or more of them.
        ValueError: it is damaged.
    """
    counts: Counter[str] = Counter()
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if number >= MAX_OPERATIONS:
            raise _RefusedError(f"more than {MAX_OPERATIONS:,} operations")
        if name == "PROTO" and argument not in PROTOCOLS:
            raise _RefusedError(f"a pickle of protocol {argument}")
        if name in STORES:
            if (
                argument is None or argument > number
            ):  # pickle's table of stored values is as long as the largest of their numbers
                raise _RefusedError(f"the number {argument} for one of {number} values")
        elif name in CONTAINERS or name in CALLS:
            kind, limit = ("containers", MAX_CONTAINERS) if name in CONTAINERS else (name, MAX_CALLS)
            counts[kind] += 1
            if counts[kind] > limit:
                raise _RefusedError(f"more than {limit} {kind}")
        elif name not in PLAIN:
            raise _RefusedError(f"the operation {name}")
