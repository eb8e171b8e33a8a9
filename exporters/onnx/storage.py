"""How a layer's integers are stored in the graph: for a function that unpacks or decodes them, or as a native type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from csqtool.errors import ExportError
from csqtool.quantized_model import IntegerArray, QuantizedLayer, twos_complement_bits
from exporters.onnx.choosing import WaitingWeight
from exporters.onnx.coding import entropy_bytes
from exporters.onnx.functions import FUNCTION_DOMAIN
from exporters.onnx.graph import GraphEditor
from exporters.onnx.options import NATIVE_BITS, OnnxOptions
from exporters.onnx.packing import FUNCTION_OPSET, pack_weight

# The lowest opset in which DequantizeLinear and Cast know a type.
OPSETS = {"int8": 13, "int16": 21, "int4": 21, "int2": 25}
NARROW = {"int4": ml_dtypes.int4, "int2": ml_dtypes.int2}
# Eight bits are an int8 tensor, which takes no function. With `auto` they are coded where that saves more than these.
CODED_SHARE, CODED_BYTES = 0.15, 4096
RUNTIMES_CASTING = ("onnxruntime",)  # only int8 weights reach integer kernels here, and casts are folded at load


class WeightStore:
    """Puts integers into a graph, and keeps track of what is packed and which opset that needs.

    Attributes:
        waiting: the placeholder node of each layer that a function will unpack or decode.
        opset: the lowest that supports all that was stored.
        stored: how each other layer is stored, by its name, for the report.
    """

    def __init__(self, editor: GraphEditor, options: OnnxOptions) -> None:
        self._editor = editor
        self._options = options
        self.waiting: dict[ir.Node, WaitingWeight] = {}
        self.opset = 0
        self.stored: dict[str, str] = {}

    def integers(self, before: ir.Node, layer: QuantizedLayer, q: IntegerArray) -> ir.Value:
        """Return the value ``LAYER``: the integers `q`, int8 or int16 (or a narrow type for its own kernels)."""
        if q.size == 0:
            raise ExportError(f"{layer.name} has no elements (shape {list(q.shape)}); remove the layer")
        if forms := self._forms(q):
            self.opset = max(self.opset, OPSETS["int16"] if q.dtype == np.int16 else FUNCTION_OPSET)
            placeholder = ir.Node(FUNCTION_DOMAIN, "Stored", [])
            self.waiting[placeholder] = WaitingWeight(layer.name, q, forms)
            return self._editor.insert_node(before, placeholder, layer.name)
        storage = self.stored[layer.name] = self._options.storage(twos_complement_bits(q))
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
        native = NARROW.get(self.stored.get(name, "")) if self._options.runtime not in RUNTIMES_CASTING else None
        return own if native is None else np.dtype(native)

    def _forms(self, q: IntegerArray) -> tuple[str, ...]:
        """Return the forms that integers may have as attributes of a node, none where a tensor is better."""
        forms = self._options.forms
        # A stream of whole bytes saves nothing.
        if "packed" not in forms or twos_complement_bits(q) != 8 or pack_weight(q).bits < 8:
            return forms
        saved = q.nbytes - entropy_bytes(q)
        return ("coded",) if "coded" in forms and saved > max(CODED_SHARE * q.nbytes, CODED_BYTES) else ()
