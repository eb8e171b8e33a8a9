"""The `.csq` file: every weight at its layer's bit width or its entropy, readable by a microcontroller.

`docs/csq-format.md` is the normative specification of what `writer` writes and `reader` reads. What the rest of
csqtool uses is exported here; the modules below are the codec's own.
"""

from __future__ import annotations

from csqtool.csq.c_files import c_example, c_header
from csqtool.csq.graph import unpack_onnx
from csqtool.csq.reader import CsqFile, open_csq, read_csq, unpack
from csqtool.csq.sizes import encoding_counts, encoding_names, float32_size, integer_bytes, tensor_bytes
from csqtool.csq.writer import ENCODINGS, check_packable, pack

__all__ = [
    "ENCODINGS",
    "CsqFile",
    "c_example",
    "c_header",
    "check_packable",
    "encoding_counts",
    "encoding_names",
    "float32_size",
    "integer_bytes",
    "open_csq",
    "pack",
    "read_csq",
    "tensor_bytes",
    "unpack",
    "unpack_onnx",
]
