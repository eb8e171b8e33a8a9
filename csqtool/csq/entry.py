"""One tensor of a `.csq` file as its table describes it, and the limits checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from csqtool.quantized_model import MAX_BIT_WIDTH

MAX_TENSORS = 1 << 16  # 7000 layers with BatchNorm and quantizers; described in memory they take at most 64 MiB
MAX_NAME_BYTES = 255  # one byte holds the length; also what file systems allow a name
MAX_RANK = 32  # every array library in use holds this many axes
MAX_DIMENSION = (1 << 32) - 1  # a 32-bit field in the table
MAX_ELEMENTS = 1 << 48  # elements, bits and bytes of a tensor then stay below 2^63 in any reader's integers
MAX_EXPANSION = 64  # decoded bytes of all tensors against the file's: bounds what a small file can claim

# In the order of their codes in the tensor table.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}


class Encoding(IntEnum):
    """How a tensor's elements are stored; the value is the code in the tensor table."""

    RAW = 0
    DENSE = 1
    TERNARY = 2
    CODEBOOK = 3
    RANS = 4
    HALF = 5
    PRUNED = 6
    CONTEXT = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table says about one tensor.

    Attributes:
        name: the tensor's name in the finalized file.
        dtype: its safetensors dtype.
        shape: its shape.
        encoding: how its elements are stored.
        bits: of one element: its dtype's (raw), 16 (half), or the two's-complement width of the integers.
        start: the first stored byte, counted from the beginning of the file.
        length: stored bytes.
        crc32: of the stored bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding
    bits: int
    start: int
    length: int
    crc32: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def decoded_bytes(self) -> int:
        """Bytes that the tensor takes in memory."""
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def native(self) -> np.dtype[Any]:
        """The dtype of the decoded array, in the machine's own byte order."""
        return DTYPES[self.dtype].newbyteorder("=")

    @property
    def is_quantized(self) -> bool:
        """Whether the tensor is stored as integers of `bits` bits."""
        return self.encoding not in (Encoding.RAW, Encoding.HALF)


def stored_bytes(elements: int, bits: int) -> int:
    """Return the bytes that `elements` values of `bits` bits take."""
    return (elements * bits + 7) // 8


def name_problem(name: str) -> str | None:
    """Return why a tensor cannot be called `name`, if it cannot."""
    size = len(name.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_NAME_BYTES:
        return f"a name has 1 to {MAX_NAME_BYTES} bytes, this one {size}"
    if name in (".", "..") or any(c in "/\\" or c < " " or c == "\x7f" for c in name):
        return "a name holds no control character and no part of a path"
    if name == "__metadata__":
        return "safetensors reserves the name"
    return None


def shape_problem(shape: Sequence[int]) -> str | None:
    """Return why a shape is refused, if it is."""
    if len(shape) > MAX_RANK:
        return f"{len(shape)} axes, at most {MAX_RANK}"
    if not all(1 <= d <= MAX_DIMENSION for d in shape):
        return f"shape {list(shape)}: a dimension is 1 to {MAX_DIMENSION}"
    if math.prod(shape) > MAX_ELEMENTS:
        return f"shape {list(shape)} exceeds {MAX_ELEMENTS} elements"
    return None


def encoding_problem(entry: Entry) -> str | None:
    """Return why dtype, encoding, bits and length do not fit each other, if they do not."""
    width = DTYPES[entry.dtype].itemsize * 8
    if entry.is_quantized:
        if (problem := _integer_problem(entry, width)) is not None:
            return problem
    elif entry.encoding is Encoding.HALF:
        if entry.dtype != "F32" or entry.bits != 16:
            return f"half tensors are F32 of 16 bits, got {entry.dtype} of {entry.bits}"
    elif entry.bits != width:
        return f"bits is {entry.bits}, raw {entry.dtype} has {width}"
    expected = {
        Encoding.TERNARY: (entry.elements + 4) // 5,
        Encoding.CODEBOOK: None,  # these say their sizes themselves
        Encoding.RANS: None,
        Encoding.PRUNED: None,
        Encoding.CONTEXT: None,
    }.get(entry.encoding, stored_bytes(entry.elements, entry.bits))
    if expected is not None and entry.length != expected:
        return f"length is {entry.length}, shape {list(entry.shape)} takes {expected} bytes"
    return None


def _integer_problem(entry: Entry, width: int) -> str | None:
    kind = entry.encoding.name.lower()
    if entry.dtype not in ("I8", "I16"):
        return f"{kind} tensors are I8 or I16, got {entry.dtype}"
    highest = 2 if entry.encoding is Encoding.TERNARY else min(width, MAX_BIT_WIDTH)
    if not 1 <= entry.bits <= highest:
        return f"bits is {entry.bits}, {kind} {entry.dtype} has 1 to {highest}"
    if entry.encoding is Encoding.PRUNED and len(entry.shape) < 2:
        return f"pruned tensors have two axes or more, got shape {list(entry.shape)}"
    return None
