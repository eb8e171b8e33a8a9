"""From a `QuantizedModel` to the bytes of a `.csq` file."""

from __future__ import annotations

import hashlib
from typing import Any

from numpy.typing import NDArray

from csqtool.csq import context, graph
from csqtool.csq.container import assemble, check_count, is_context_coded
from csqtool.csq.encodings import encode_integers, encode_others, encode_with_contexts
from csqtool.csq.entry import (
    DTYPE_NAMES,
    DTYPES,
    MAX_EXPANSION,
    Encoding,
    Entry,
    name_problem,
    shape_problem,
)
from csqtool.csq.inference import folded
from csqtool.errors import ExportError
from csqtool.finalized_file import serialize, to_tensors
from csqtool.quantized_model import QuantizedModel

ENCODINGS = ("context", "smallest", "dense")  # what `pack` may be asked for, the smallest first


def pack(
    model: QuantizedModel,
    *,
    encoding: str = "smallest",
    onnx: bytes | None = None,
    inference: bool = False,
    half: bool = False,
) -> bytes:
    """Return the `.csq` file of `model`; the same model always gives the same bytes (with the same zlib).

    Args:
        model: what to write.
        encoding: ``smallest`` takes the smallest encoding of version 2 for each tensor; ``context`` also tries
            context coding, which is smaller and slower, and gives a file of version 3; ``dense`` stores every integer
            in two's complement, for random access and the fastest decoding.
        onnx: an ONNX file of the model; the package carries what of it does not follow from the tensors.
        inference: leave out what a device does not need, with BatchNorms folded; not together with `onnx`.
        half: of an inference file, round float biases and other float32 tensors to float16.

    Raises:
        ExportError: the model holds something that the format cannot carry.
        FormatError: for an inference file, a BatchNorm has tensors of wrong shapes.
    """
    if encoding not in ENCODINGS:
        raise ExportError(f"csq: unknown encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
    if inference and onnx is not None:
        raise ExportError("csq: an inference file holds no ONNX graph")
    tensors, metadata = _tensors_of(model)
    digest = hashlib.sha256(serialize(tensors, metadata)).hexdigest()
    bit_widths = {layer.name: layer.bit_width for layer in model.layers}
    if inference:
        content_of = folded(model, half=half)
        tensors, metadata, bit_widths = content_of.tensors, content_of.metadata, content_of.bit_widths
    recipe = None if onnx is None else graph.cut(onnx, tensors)
    # Where almost all values are equal, a file would expand beyond what readers accept; the next encoding is larger.
    # Dense expands 16 times at most.
    for tried in ENCODINGS[ENCODINGS.index(encoding) :]:
        content = assemble(_encoded(tensors, bit_widths, tried), metadata, digest, recipe)
        if sum(array.nbytes for array in tensors.values()) <= MAX_EXPANSION * len(content):
            break
    return content


def check_packable(model: QuantizedModel) -> None:
    """Check what does not depend on the values of the weights: names, types, shapes and the number of tensors.

    Raises:
        ExportError: the model holds something that the format cannot carry.
    """
    tensors, _ = _tensors_of(model)
    check_count(len(tensors))


def _encoded(tensors: dict[str, NDArray[Any]], bit_widths: dict[str, int], how: str) -> list[tuple[Entry, bytes]]:
    """Return the table and the bytes of all tensors, by name (UTF-8 order); those with a bit width are integers."""
    left = context.MAX_ELEMENTS  # that may still be context-coded
    encoded = []
    for name in sorted(tensors, key=str.encode):
        array = tensors[name]
        dtype = array.dtype.newbyteorder("<")
        if name in bit_widths:
            bits = bit_widths[name]
            if how == "context" and array.size <= left:
                encoding, stored = encode_with_contexts(array, bits)
            else:
                encoding, stored = encode_integers(array, bits, smallest=how != "dense")
        else:
            encoding, stored = encode_others(array, name)
            bits = 16 if encoding is Encoding.HALF else dtype.itemsize * 8
        entry = Entry(name, DTYPE_NAMES[dtype], array.shape, encoding, bits, 0, len(stored), 0)
        if is_context_coded(entry, stored):
            left -= array.size
        encoded.append((entry, stored))
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
