"""How a layer's integers are stored in the graph: packed, with a function that unpacks them, or as a native type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from csqtool.errors import ExportError
from csqtool.quantized_model import QuantizedLayer, twos_complement_bits
from exporters.onnx.functions import FUNCTION_DOMAIN
from exporters.onnx.graph import GraphEditor
from exporters.onnx.options import NATIVE_BITS, OnnxOptions
from exporters.onnx.packing import FUNCTION_OPSET, PackedWeight, pack_weight

# The lowest opset in which DequantizeLinear and Cast know a type.
OPSETS = {"int8": 13, "int16": 21, "int4": 21, "int2": 25}
NARROW = {"int4": ml_dtypes.int4, "int2": ml_dtypes.int2}
RUNTIMES_CASTING = ("onnxruntime",)  # only int8 weights reach integer kernels here, and casts are folded at load


class WeightStore:
    """Puts integers into a graph, and keeps track of what is packed and which opset that needs.

    Attributes:
        packed: the placeholder node of each packed layer, with its name and stream.
        opset: the lowest that supports all that was stored.
        stored: how each layer is stored, by its name, for the report.
    """

    def __init__(self, editor: GraphEditor, options: OnnxOptions) -> None:
        self._editor = editor
        self._options = options
        self.packed: dict[ir.Node, tuple[str, PackedWeight]] = {}
        self.opset = 0
        self.stored: dict[str, str] = {}

    def integers(self, before: ir.Node, layer: QuantizedLayer, q: NDArray[Any]) -> ir.Value:
        """Return the value ``LAYER``: the integers `q`, int8 or int16 (or a narrow type for its own kernels)."""
        if q.size == 0:
            raise ExportError(f"{layer.name} has no elements (shape {list(q.shape)}); remove the layer")
        storage = self._options.storage(twos_complement_bits(q))
        packed = pack_weight(q) if storage == "packed" else None
        if packed is not None and packed.bits == 8:
            packed, storage = None, "int8"  # a stream of whole bytes saves nothing
        if packed is not None:
            self.stored[layer.name] = f"packed {packed.bits}" + (" (levels)" if packed.levels is not None else "")
            return self._packed(before, layer.name, packed)
        self.stored[layer.name] = storage
        self.opset = max(self.opset, OPSETS[storage])
        if storage not in NARROW:
            return self._editor.fresh(layer.name, q)
        bound = 1 << (NATIVE_BITS[storage] - 1)
        assert -bound <= q.min() <= q.max() < bound, layer.name  # values out of range would wrap silently
        if self._options.runtime in RUNTIMES_CASTING:
            narrow = self._editor.fresh(f"{layer.name}_{storage}", q.astype(NARROW[storage]))
            return self._editor.insert(before, "Cast", [narrow], layer.name, to=ir.DataType.INT8)
        return self._editor.fresh(layer.name, q.astype(NARROW[storage]))

    def dtype(self, name: str, own: np.dtype[Any]) -> np.dtype[Any]:
        """Return the type of a stored layer's integers; `own` is the finalized model's."""
        native = NARROW.get(self.stored[name]) if self._options.runtime not in RUNTIMES_CASTING else None
        return own if native is None else np.dtype(native)

    def _packed(self, before: ir.Node, name: str, packed: PackedWeight) -> ir.Value:
        self.opset = max(self.opset, OPSETS["int16"] if packed.dtype == np.int16 else FUNCTION_OPSET)
        placeholder = ir.Node(FUNCTION_DOMAIN, "Packed", [])
        self.packed[placeholder] = name, packed
        return self._editor.insert_node(before, placeholder, name)
