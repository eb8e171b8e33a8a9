"""The ONNX graph in a `.csq` package: whether it is rebuilt bit for bit, and whether it is this model's.

The recipe is read by code written from section 5 of `docs/csq-format.md`, which shares nothing with `csqtool.csq`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.verifying.csq_decoder import graph_part

HEAD_BYTES = 44  # SHA-256, bytes of the ONNX file, number of pieces
PIECE_BYTES = 8
GROWTH_LIMIT = 64  # the ONNX file against the package
FREE_PIECES = 1024  # and these many for each tensor
PIECES_A_TENSOR = 16


def graph_verdict(
    content: bytes, tensors: dict[str, NDArray[Any]], finalized_sha256: str, *, where: str
) -> tuple[bool, str, bytes] | None:
    """Return whether the ONNX file in a package is rebuilt and is this model's, words for it, and the file.

    Args:
        content: the package, its structure checked.
        tensors: all its tensors, in the order of the table.
        finalized_sha256: of the finalized file that `unpack` writes from it.
        where: the file's name, for messages.

    Returns:
        None if the package has no graph.
    """
    import onnx

    recipe, start = graph_part(content, where=where)
    if recipe is None:
        return None
    try:
        rebuilt = rebuild(recipe, list(tensors.values()), GROWTH_LIMIT * len(content))
    except FormatError as error:
        return False, f"{where}: graph at byte {start}: {error}", b""
    properties = {p.key: p.value for p in onnx.ModelProto.FromString(rebuilt).metadata_props}
    if properties.get("csqtool.finalized_sha256") != finalized_sha256:
        return False, "it is the graph of another finalized model", b""
    return True, f"rebuilt bit for bit, {len(rebuilt)} bytes", rebuilt


def rebuild(recipe: bytes, tensors: list[NDArray[Any]], max_bytes: int) -> bytes:
    """Return the ONNX file that a recipe describes.

    Args:
        recipe: the graph section, inflated.
        tensors: those of the package, in the order of its table.
        max_bytes: how large the file may be.

    Raises:
        FormatError: the recipe breaks a rule, or gives a file of another SHA-256.
    """
    _require(len(recipe) >= HEAD_BYTES, "the recipe ends in its head")
    size, count = int.from_bytes(recipe[32:40], "little"), int.from_bytes(recipe[40:44], "little")
    _require(size <= max_bytes, f"it claims {size} bytes, at most {max_bytes}")
    _require(count <= FREE_PIECES + PIECES_A_TENSOR * len(tensors), f"it has {count} pieces, too many")
    total, at = 0, HEAD_BYTES
    for tensor, form, bits, _, number, end in _walk(recipe, count, tensors):
        total += number if tensor is None else _length(tensor, form, bits)
        at = end  # the literals follow
    _require(total == size, f"its pieces have {total} bytes, the ONNX file {size}")
    file = bytearray()
    for tensor, form, bits, (signs, reverse), number, _ in _walk(recipe, count, tensors):
        if tensor is None:
            _require(at + number <= len(recipe), "the recipe ends inside a literal")
            file += recipe[at : at + number]
            at += number
        else:
            file += _referenced(tensor, form, bits, signs, reverse)
    _require(at == len(recipe), f"{len(recipe) - at} bytes are left after the literals")
    _require(hashlib.sha256(file).digest() == recipe[:32], "the rebuilt ONNX file has another SHA-256")
    return bytes(file)


_Piece = tuple[NDArray[Any] | None, int, int, tuple[NDArray[np.int8] | None, bool], int, int]


def _walk(recipe: bytes, count: int, tensors: list[NDArray[Any]]) -> Iterator[_Piece]:
    """Yield each piece: its tensor (None: literal), form, bits, (signs, reversed axes), number, and where it ends."""
    at = HEAD_BYTES
    for index in range(count):
        what = f"piece {index}, at byte {at} of the recipe"
        _require(at + PIECE_BYTES <= len(recipe), f"{what}: the recipe ends inside it")
        form, bits, flags, reserved = recipe[at : at + 4]
        number = int.from_bytes(recipe[at + 4 : at + PIECE_BYTES], "little")
        at += PIECE_BYTES
        _require(reserved == 0 and form <= 4 and flags <= 3, f"{what}: form {form}, flags {flags}, then {reserved}")
        if form == 0:
            _require(bits == flags == 0, f"{what}: a literal has neither bits nor flags")
            yield None, 0, 0, (None, False), number, at
            continue
        _require(number < len(tensors), f"{what}: there is no tensor {number}")
        tensor = tensors[number]
        _require(1 <= bits <= 9 if form > 1 else bits == 0, f"{what}: {bits} bits in form {form}")
        plain = form == 1 and not flags
        _require(plain or (tensor.dtype in (np.int8, np.int16) and tensor.ndim), f"{what}: needs integers with an axis")
        signs = None
        if flags & 1:
            signs = np.frombuffer(recipe[at : at + len(tensor)], np.int8)
            _require(len(signs) == len(tensor) and set(signs.tolist()) <= {-1, 0, 1}, f"{what}: its signs")
            at += len(tensor)
        yield tensor, form, bits, (signs, flags & 2 > 0), number, at


def _length(tensor: NDArray[Any], form: int, bits: int) -> int:
    if form == 1:
        return tensor.nbytes
    return math.ceil(tensor.size / 8) * bits if form == 4 else math.ceil(tensor.size * bits / 8)


def _referenced(tensor: NDArray[Any], form: int, bits: int, signs: NDArray[np.int8] | None, reverse: bool) -> bytes:
    """Return the bytes of the ONNX file that follow from a tensor: single bits, in the order of the form."""
    values = tensor
    if signs is not None:
        values = np.stack([row.astype(np.int16) * int(sign) for row, sign in zip(tensor, signs, strict=True)])
        values = values.astype(tensor.dtype)
    flat = values.transpose().ravel() if reverse else values.ravel()
    if form == 1:
        return flat.astype(flat.dtype.newbyteorder("<")).tobytes()
    fields = flat.astype(np.int32) + (2 ** (bits - 1) if form > 2 else 0)
    if form < 4:
        digits = (fields[:, None] >> np.arange(bits) & 1).astype(np.uint8)  # (value, bit)
        return np.packbits(digits.ravel(), bitorder="little").tobytes()
    lanes = math.ceil(len(fields) / 8)
    eighths = np.pad(fields, (0, 8 * lanes - len(fields))).reshape(8, lanes)
    streams = [np.zeros(lanes, np.int64) for _ in range(bits)]  # byte by byte of every lane
    for bit in range(8 * bits):
        streams[bit // 8] += (eighths[bit // bits] >> bit % bits & 1) << bit % 8
    return b"".join(stream.astype(np.uint8).tobytes() for stream in streams)


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise FormatError(problem)
