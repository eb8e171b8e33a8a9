"""The `.csq` file: every weight at its layer's bit width or its entropy, readable by a microcontroller.

`docs/csq-format.md` is the normative specification of what `writer` writes and `reader` reads.
"""

from __future__ import annotations

import importlib.resources

from csqtool.csq import graph
from csqtool.csq.container import ALIGNMENT
from csqtool.csq.encodings import encode_integers
from csqtool.csq.reader import CsqFile, open_csq
from csqtool.csq.writer import pack as _pack
from csqtool.finalized_file import serialize, to_tensors
from csqtool.quantized_model import IntegerArray, QuantizedModel, twos_complement_bits

__all__ = [
    "CsqFile",
    "c_header",
    "float32_size",
    "integer_bytes",
    "open_csq",
    "pack",
    "read_csq",
    "tensor_bytes",
    "unpack",
    "unpack_onnx",
]


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
    recipe = None if onnx is None else graph.cut(onnx, to_tensors(model)[0])
    return _pack(model, encoding=encoding, graph=recipe)


def float32_size(model: QuantizedModel) -> int:
    """Return the bytes of the float32 model as a safetensors file, which is what unpacked weights would be."""
    weights = {layer.name: layer.dequantized() for layer in model.layers}
    return len(serialize({**model.tensors, **weights}, "{}"))


def tensor_bytes(content: bytes, *, where: str) -> dict[str, int]:
    """Return the bytes that each tensor of `content`, a `.csq` file, takes in it."""
    return {name: entry.length for name, entry in CsqFile(content, where=where).entries.items()}


def integer_bytes(q: IntegerArray) -> int:
    """Return the bytes that a layer's integers take in a file, with what aligns the next tensor."""
    stored = encode_integers(q, twos_complement_bits(q), smallest=True)[1]
    return len(stored) + -len(stored) % ALIGNMENT


def c_header() -> bytes:
    """Return the C reader, ``csq.h``."""
    return (importlib.resources.files("csqtool.csq") / "c" / "csq.h").read_bytes()


def unpack_onnx(content: bytes, *, where: str) -> bytes:
    """Return the ONNX file that was packed into `content`, bit for bit.

    Raises:
        FormatError: `content` is damaged, or carries no graph.
    """
    file = CsqFile(content, where=where)
    file.model()
    return graph.rebuild(file)


def read_csq(content: bytes, *, where: str) -> QuantizedModel:
    """Return the model in a `.csq` file, checked down to the SHA-256 of its finalized file.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of a known version.
    """
    return CsqFile(content, where=where).model()


def unpack(content: bytes, *, where: str) -> bytes:
    """Return the finalized safetensors file that was packed into `content`, bit for bit.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of a known version.
    """
    file = CsqFile(content, where=where)
    file.model()
    return b"".join(file.finalized())
