"""The recipe of an ONNX file: what of it does not follow from the package's tensors, cut when packing.

Pieces of the file that equal some form of a tensor become references; all other bytes stay as they are. The recipe
does not depend on how the ONNX exporter lays out a graph: if that changes, it stays right, and only the size grows.
The SHA-256 of the ONNX file tells whether the rebuilt file is the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.bit_fields import pack_fields, unpacked_blocks
from csqtool.csq.entry import MAX_EXPANSION, Entry, stored_bytes
from csqtool.csq.reader import CsqFile
from csqtool.errors import FormatError
from csqtool.onnx_file import parse_onnx, stored_tensors
from csqtool.quantized_model import MAX_BIT_WIDTH

HEAD = struct.Struct("<32sQI")  # SHA-256 and bytes of the ONNX file, number of pieces
PIECE = struct.Struct("<BBBBI")  # form, bits, flags, 0; literal: its bytes; else: the tensor's number in the table
LITERAL, VALUES, TWOS_COMPLEMENT, OFFSET, LANES = range(5)  # forms
SIGNED, TRANSPOSED = 1, 2  # flags
MIN_REFERENCE_BYTES = 16  # shorter ones cost more as a reference
FREE_PIECES, PIECES_A_TENSOR = 1 << 10, 16  # of a recipe: a reference decodes a tensor anew


@dataclass(frozen=True)
class _Reference:
    """Bytes of the ONNX file that follow from a tensor.

    Attributes:
        tensor: its name.
        form: how its values are written.
        bits: of one value, in the two packed forms.
        signs: −1, 0 or 1 for each row (first axis), which is multiplied; None for none.
        transposed: whether the axes are reversed.
    """

    tensor: str
    form: int
    bits: int = 0
    signs: NDArray[np.int8] | None = None
    transposed: bool = False

    def bytes(self, tensor: NDArray[Any]) -> bytes:
        """Return these bytes of the ONNX file."""
        if self.signs is not None:
            signs = self.signs.reshape(-1, *[1] * (tensor.ndim - 1))
            tensor = (tensor.astype(np.int16) * signs).astype(tensor.dtype)
        flat = (tensor.T if self.transposed else tensor).reshape(-1)
        if self.form == VALUES:
            return flat.astype(flat.dtype.newbyteorder("<")).tobytes()
        offset = 0 if self.form == TWOS_COMPLEMENT else 1 << (self.bits - 1)
        fields = flat.astype(np.int16) + np.int16(offset)
        return _to_lanes(fields, self.bits) if self.form == LANES else pack_fields(fields, self.bits)

    def size(self, entry: Entry) -> int:
        """Return how many bytes that is, from what the table says of the tensor."""
        if self.form == VALUES:
            return entry.decoded_bytes
        return self.bits * -(-entry.elements // 8) if self.form == LANES else stored_bytes(entry.elements, self.bits)


def _to_lanes(fields: NDArray[np.int16], bits: int) -> bytes:
    """Return a stream that lies in lanes: eighth j of the fields is field j of all lanes, byte by byte of a lane."""
    lanes = -(-fields.size // 8)
    padded = np.zeros(8 * lanes, np.int16)
    padded[: fields.size] = fields
    planes = padded.reshape(8, 1, lanes) >> np.arange(bits, dtype=np.int16).reshape(1, bits, 1) & 1
    return np.packbits(planes.astype(np.uint8).reshape(8 * bits, lanes), axis=0, bitorder="little").tobytes()


def _from_lanes(raw: bytes, count: int, bits: int) -> NDArray[np.int16]:
    lanes = -(-count // 8)
    rows = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(bits, lanes), axis=0, bitorder="little")
    weights = (1 << np.arange(bits, dtype=np.int16)).reshape(1, bits, 1)
    fields: NDArray[np.int16] = (rows.reshape(8, bits, lanes) * weights).sum(1, dtype=np.int16)
    return fields.reshape(-1)[:count]


def most_pieces(tensors: int) -> int:
    """Return how many pieces the recipe of a package with so many tensors may have."""
    return FREE_PIECES + PIECES_A_TENSOR * tensors


def cut(onnx_file: bytes, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the recipe from which, with `tensors`, `rebuild` makes `onnx_file` again."""
    numbers = {name: i for i, name in enumerate(sorted(tensors, key=str.encode))}
    pieces, literals = bytearray(), bytearray()
    count = position = 0

    def literal(end: int) -> None:
        nonlocal count, pieces, literals
        if end > position:
            pieces += PIECE.pack(LITERAL, 0, 0, 0, end - position)
            literals += onnx_file[position:end]
            count += 1

    for raw in _tensors(onnx_file):
        start = onnx_file.find(raw, position)
        room = count + 3 <= most_pieces(len(tensors))  # a literal before it, itself, and the rest of the file
        found = _reference(raw, tensors) if start >= 0 and len(raw) >= MIN_REFERENCE_BYTES and room else None
        if found is None:
            continue
        literal(start)
        flags = SIGNED * (found.signs is not None) | TRANSPOSED * found.transposed
        pieces += PIECE.pack(found.form, found.bits, flags, 0, numbers[found.tensor])
        pieces += b"" if found.signs is None else found.signs.tobytes()
        count += 1
        position = start + len(raw)
    literal(len(onnx_file))
    return HEAD.pack(hashlib.sha256(onnx_file).digest(), len(onnx_file), count) + pieces + literals


def _tensors(onnx_file: bytes) -> Iterator[bytes]:
    """Yield the raw bytes of the graph's tensors, in the order of the file."""
    for _, tensor in stored_tensors(parse_onnx(onnx_file, where="the ONNX file")):
        yield tensor.raw_data


def _reference(raw: bytes, tensors: Mapping[str, NDArray[Any]]) -> _Reference | None:
    """Return how `raw` follows from one of the tensors, if it does."""
    for name, tensor in tensors.items():
        if raw == (plain := _Reference(name, VALUES)).bytes(tensor):
            return plain
        if tensor.dtype not in (np.int8, np.int16) or tensor.ndim == 0:
            continue
        forms = [(VALUES, tensor.itemsize * 8, np.frombuffer(raw, tensor.dtype))] if _fits(raw, tensor) else []
        for bits in range(1, MAX_BIT_WIDTH + 1):
            if len(raw) == stored_bytes(tensor.size, bits):
                fields = np.concatenate([b.copy() for b, _ in unpacked_blocks(raw, tensor.size, bits)])
                unsigned = fields.astype(np.int16) & ((1 << bits) - 1)
                forms += [(TWOS_COMPLEMENT, bits, fields), (OFFSET, bits, unsigned - (1 << (bits - 1)))]
            if len(raw) == bits * -(-tensor.size // 8):
                forms.append((LANES, bits, _from_lanes(raw, tensor.size, bits) - np.int16(1 << (bits - 1))))
        for form, bits, values in forms:
            for transposed in (False, True)[: 1 + (tensor.ndim > 1)]:
                shaped = values.reshape(tensor.shape[::-1]).T if transposed else values.reshape(tensor.shape)
                if (signs := _signs(shaped, tensor)) is not None:
                    kept = None if (signs == 1).all() else signs
                    found = _Reference(name, form, 0 if form == VALUES else bits, kept, transposed)
                    if found.bytes(tensor) == raw:  # padding bits, too
                        return found
    return None


def _fits(raw: bytes, tensor: NDArray[Any]) -> bool:
    return len(raw) == tensor.nbytes


def _signs(values: NDArray[Any], tensor: NDArray[Any]) -> NDArray[np.int8] | None:
    """Return the sign by which each row of `tensor` becomes that of `values`, or None where one does not."""
    found = values.reshape(len(values), -1).astype(np.int16)  # (row, value in it)
    wanted = tensor.reshape(len(tensor), -1).astype(np.int16)
    equal, negated, zero = ((found == sign * wanted).all(1) for sign in (1, -1, 0))
    if not (equal | negated | zero).all():
        return None
    return np.where(equal, 1, np.where(negated, -1, 0)).astype(np.int8)


def unpack_onnx(content: bytes, *, where: str) -> bytes:
    """Return the ONNX file that was packed into `content`, bit for bit.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged, or carries no graph.
    """
    file = CsqFile(content, where=where)
    file.model()
    return rebuild(file)


def rebuild(file: CsqFile) -> bytes:
    """Return the ONNX file that a package was made with.

    Raises:
        FormatError: the package carries no graph, or its recipe does not give the file that it names.
    """
    if file.graph is None:
        raise FormatError(f"{file.where} carries no ONNX graph; pack it with --with-graph")
    where = file.graph_place
    recipe = memoryview(file.graph)
    if len(recipe) < HEAD.size:
        raise FormatError(f"{where}: the recipe ends in its head")
    digest, total, count = HEAD.unpack_from(recipe)
    if total > MAX_EXPANSION * file.size_bytes:
        raise FormatError(f"{where}: it claims {total} bytes, more than {MAX_EXPANSION} times the file's size")
    if count > most_pieces(len(file.entries)):
        raise FormatError(f"{where}: {count} pieces, at most {most_pieces(len(file.entries))}")
    # Checked first and put together last: what a wrong recipe makes is never in memory as a whole.
    literals, size = HEAD.size, 0
    for piece, end in _pieces(recipe, count, file, where):
        size += piece if isinstance(piece, int) else piece.size(file.entries[piece.tensor])
        literals = end
    if size != total:
        raise FormatError(f"{where}: its pieces have {size} bytes, the ONNX file {total}")
    found = hashlib.sha256()
    for part in _parts(recipe, count, literals, file, where):
        found.update(part)
    if found.digest() != digest:
        raise FormatError(f"{where}: the rebuilt ONNX file is not the one with SHA-256 {digest.hex()}")
    return b"".join(_parts(recipe, count, literals, file, where))


def _parts(recipe: memoryview, count: int, literals: int, file: CsqFile, where: str) -> Iterator[bytes | memoryview]:
    """Yield the bytes of each piece; literals begin at `literals`, and the recipe ends with the last."""
    position = literals
    for piece, _ in _pieces(recipe, count, file, where):
        if isinstance(piece, int):
            if position + piece > len(recipe):
                raise FormatError(f"{where}: the recipe ends inside a literal")
            yield recipe[position : position + piece]
            position += piece
        else:
            yield piece.bytes(file.tensor(piece.tensor))
    if position != len(recipe):
        raise FormatError(f"{where}: {len(recipe) - position} bytes are left after the literals of the recipe")


def _pieces(recipe: memoryview, count: int, file: CsqFile, where: str) -> Iterator[tuple[int | _Reference, int]]:
    """Yield each piece, a literal as its size in bytes, and where it ends in the recipe."""
    names = list(file.entries)
    position = HEAD.size
    for number in range(count):
        what = f"{where}: piece {number}, at byte {position} of the recipe"
        if position + PIECE.size > len(recipe):
            raise FormatError(f"{what}: the recipe ends inside it")
        form, bits, flags, reserved, value = PIECE.unpack_from(recipe, position)
        position += PIECE.size
        if reserved:
            raise FormatError(f"{what}: its reserved byte is {reserved}, expected 0")
        if form == LITERAL and not bits and not flags:
            yield value, position
            continue
        if form not in (VALUES, TWOS_COMPLEMENT, OFFSET, LANES) or flags > SIGNED | TRANSPOSED or value >= len(names):
            raise FormatError(f"{what}: unknown form {form}, flags {flags} or tensor {value}")
        entry = file.entries[names[value]]
        signs = None
        if flags & SIGNED and entry.shape:
            signs = np.frombuffer(recipe[position : position + entry.shape[0]], np.int8)
            position += entry.shape[0]
        integers = entry.dtype in ("I8", "I16")
        packed = form != VALUES
        if (
            ((flags or packed) and not (integers and entry.shape))
            or bits not in (range(1, MAX_BIT_WIDTH + 1) if packed else (0,))
            or (signs is not None and (signs.size != entry.shape[0] or (np.abs(signs.astype(int)) > 1).any()))
        ):  # fmt: skip
            raise FormatError(f"{what}: form {form} of {bits} bits does not fit tensor {entry.name!r}")
        yield _Reference(entry.name, form, bits, signs, bool(flags & TRANSPOSED)), position
