"""How the safetensors file that csqtool writes is laid out (annex A of `docs/csq-format.md`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from csqtool.csq.entry import DTYPES
from csqtool.finalized_file import METADATA_KEY

# The order of dtypes in the file.
_DTYPE_ORDER = ("U64", "I64", "F64", "C64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")


class Tensor(NamedTuple):
    """A tensor as the header describes it: its name, its safetensors dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def header_and_order(tensors: Sequence[Tensor], metadata: str) -> tuple[bytes, list[str]]:
    """Return the file up to its first tensor, and the names of the tensors in the order of their bytes.

    Args:
        tensors: all tensors of the file, in any order.
        metadata: the JSON text under the metadata key ``csqtool``.
    """
    rank = {dtype: i for i, dtype in enumerate(_DTYPE_ORDER)}
    ordered = sorted(tensors, key=lambda tensor: (rank[tensor.dtype], tensor.name.encode()))
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [tensor.name for tensor in ordered]
