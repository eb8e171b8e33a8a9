"""From a `QuantizedModel` to the bytes of a `.csq` file."""

from __future__ import annotations

import hashlib
from typing import Any

from numpy.typing import NDArray

from csqtool.csq import graph
from csqtool.csq.container import assemble, check_count
from csqtool.csq.encodings import encode_integers, encode_others
from csqtool.csq.entry import (
    DTYPE_NAMES,
    DTYPES,
    MAX_EXPANSION,
    Encoding,
    Entry,
    name_problem,
    shape_problem,
)
from csqtool.errors import ExportError
from csqtool.finalized_file import serialize, to_tensors
from csqtool.quantized_model import QuantizedModel

ENCODINGS = ("smallest", "dense")  # what `pack` may be asked for


def pack(model: QuantizedModel, *, encoding: str = "smallest", onnx: bytes | None = None) -> bytes:
    """Return the `.csq` file of `model`; the same model always gives the same bytes (with the same zlib).

    Args:
        model: what to write.
        encoding: ``smallest`` takes the smallest encoding for each tensor; ``dense`` stores every integer in
            two's complement, for random access and the fastest decoding.
        onnx: an ONNX file of the model; the package carries what of it does not follow from the tensors.

    Raises:
        ExportError: the model holds something that the format cannot carry.
    """
    if encoding not in ENCODINGS:
        raise ExportError(f"csq: unknown encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
    tensors, metadata = _tensors_of(model)
    recipe = None if onnx is None else graph.cut(onnx, tensors)
    digest = hashlib.sha256(serialize(tensors, metadata)).hexdigest()
    content = assemble(_encoded(model, tensors, encoding == "smallest"), metadata, digest, recipe)
    if sum(array.nbytes for array in tensors.values()) > MAX_EXPANSION * len(content):
        # Almost all values are equal: the file would expand beyond what readers accept. Dense expands 16 times at most.
        content = assemble(_encoded(model, tensors, False), metadata, digest, recipe)
    return content


def check_packable(model: QuantizedModel) -> None:
    """Check what does not depend on the values of the weights: names, types, shapes and the number of tensors.

    Raises:
        ExportError: the model holds something that the format cannot carry.
    """
    tensors, _ = _tensors_of(model)
    check_count(len(tensors))


def _encoded(model: QuantizedModel, tensors: dict[str, NDArray[Any]], smallest: bool) -> list[tuple[Entry, bytes]]:
    """Return the table and the bytes of all tensors, by name (UTF-8 order)."""
    bit_widths = {layer.name: layer.bit_width for layer in model.layers}
    encoded = []
    for name in sorted(tensors, key=str.encode):
        array = tensors[name]
        dtype = array.dtype.newbyteorder("<")
        if name in bit_widths:
            bits = bit_widths[name]
            encoding, stored = encode_integers(array, bits, smallest=smallest)
        else:
            encoding, stored = encode_others(array, name)
            bits = 16 if encoding is Encoding.HALF else dtype.itemsize * 8
        encoded.append((Entry(name, DTYPE_NAMES[dtype], array.shape, encoding, bits, 0, len(stored), 0), stored))
    return encoded


def _tensors_of(model: QuantizedModel) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the tensors and metadata of the finalized file, refusing what the format cannot carry."""
    try:
        tensors, metadata = to_tensors(model)
        for text in (*tensors, metadata):
            text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"csq: the model's description is not valid JSON in UTF-8: {error}") from error
    for name, array in tensors.items():
        if (problem := name_problem(name)) is not None:
            raise ExportError(f"csq: a tensor cannot be called {name!r}: {problem}")
        if array.dtype.newbyteorder("<") not in DTYPE_NAMES:
            raise ExportError(f"csq: {name}: cannot store {array.dtype}; stored: {', '.join(DTYPES)}")
        if (problem := shape_problem(array.shape)) is not None:
            raise ExportError(f"csq: {name}: {problem}")
    return tensors, metadata
