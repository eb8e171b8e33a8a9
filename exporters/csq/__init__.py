"""The `.csq` file: every weight at its layer's bit width or its entropy, readable by a microcontroller.

`docs/csq-format.md` is the normative specification of what `writer` writes and `reader` reads.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from csqtool.files import write_bytes
from csqtool.finalized_file import serialize, to_tensors
from csqtool.quantized_model import IntegerArray, QuantizedModel, twos_complement_bits
from exporters.csq import graph
from exporters.csq.container import ALIGNMENT
from exporters.csq.encodings import encode_integers
from exporters.csq.reader import CsqFile, open_csq
from exporters.csq.writer import pack

__all__ = ["CsqExporter", "CsqFile", "open_csq", "pack", "read_csq", "unpack"]


class CsqExporter:
    """Writes a model as one `.csq` file, which `unpack` turns back into the finalized model bit for bit."""

    name = "csq"
    suffix = ".csq"
    description = "packed weights at each layer's own bit width or below, restored bit for bit by unpack"

    def export(
        self,
        model: QuantizedModel,
        path: Path,
        *,
        build_module: Any = None,
        encoding: str = "smallest",
        onnx: bytes | None = None,
    ) -> list[str]:
        """Write `model` to `path` atomically.

        Args:
            model: what to write.
            path: the file to write or replace.
            build_module: not needed by this format.
            encoding: ``smallest`` or ``dense``, see `pack`.
            onnx: an ONNX file of the model; the package carries what of it does not follow from the tensors.

        Returns:
            Notes for the user: none, because the format carries every finalized model completely.

        Raises:
            ExportError: the model holds something that the format cannot carry.
        """
        recipe = None if onnx is None else graph.cut(onnx, to_tensors(model)[0])
        write_bytes(path, pack(model, encoding=encoding, graph=recipe))
        return []

    def float32_size(self, model: QuantizedModel, *, build_module: Any = None) -> int:
        """Return the bytes of the float32 model as a safetensors file, which is what unpacked weights would be."""
        weights = {layer.name: layer.dequantized() for layer in model.layers}
        return len(serialize({**model.tensors, **weights}, "{}"))

    def unpack(self, content: bytes, *, where: str) -> bytes:
        """Return the finalized file that was packed into `content`; see `unpack`."""
        return unpack(content, where=where)

    def tensor_bytes(self, content: bytes, *, where: str) -> dict[str, int]:
        """Return the bytes that each tensor of `content`, a `.csq` file, takes in it."""
        return {name: entry.length for name, entry in CsqFile(content, where=where).entries.items()}

    def integer_bytes(self, q: IntegerArray) -> int:
        """Return the bytes that a layer's integers take in a file, with what aligns the next tensor."""
        stored = encode_integers(q, twos_complement_bits(q), smallest=True)[1]
        return len(stored) + -len(stored) % ALIGNMENT

    def c_header(self) -> bytes:
        """Return the C reader, ``csq.h``."""
        return (importlib.resources.files("exporters.csq") / "c" / "csq.h").read_bytes()

    def unpack_onnx(self, content: bytes, *, where: str) -> bytes:
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
