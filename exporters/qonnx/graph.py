"""Replaces marker nodes by QONNX's quantizers, in the form that FINN and hls4ml convert.

A weight is float32(q)·Δ, followed by a `Quant` with the layer's bits and the scale Δ; one of −1 and 1 alone gets a
`BipolarQuant`. A BatchNorm stays a node of its own, so that the scale of a weight is one number, and a power of two if
the search made it one. Both tools refuse a zero point other than 0, so one in the middle of the range is written as a
signed quantizer. FINN takes an unsigned one after a Relu alone, which changes nothing there: the quantizer itself has
no value below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from csqtool.errors import ExportError
from csqtool.nn.markers import MARKER_DOMAIN
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel, twos_complement_bits
from exporters.onnx.graph import GraphEditor, constant_of, name_value, only_user
from exporters.onnx.pooling import global_average_pool

QONNX_DOMAIN = "qonnx.custom_op.general"
IR_VERSION = 8  # of opset 18
ROUNDING = "ROUND"  # half to even
NAMED_OPS = ("Conv", "ConvTranspose", "Gemm", "Gather")  # whose results get the layer's name
WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")


def place_quantizers(graph_model: ir.Model, model: QuantizedModel) -> tuple[dict[str, str], list[str]]:
    """Replace every marker of a captured graph, in place.

    Returns:
        How each layer's weights are described, and notes for the user.

    Raises:
        ExportError: a weight has no elements, or an activation quantizer is not in the graph.
    """
    quantizers = _Quantizers(graph_model.graph, model)
    for node in list(graph_model.graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Weight":
            quantizers.weight(node)
        elif node.domain == MARKER_DOMAIN:
            quantizers.activation(node)
        elif node.op_type == "ReduceMean" and not node.domain:
            global_average_pool(quantizers.editor, node)
    quantizers.check_all_placed()
    graph_model.opset_imports.pop(MARKER_DOMAIN, None)
    graph_model.opset_imports[QONNX_DOMAIN] = 1
    graph_model.ir_version = IR_VERSION
    missing = [layer.name for layer in model.layers if layer.name not in quantizers.stored]
    notes = [f"not used by the forward pass, so not in the graph: {', '.join(missing)}"] if missing else []
    return quantizers.stored, [*notes, *_notes(model)]


class _Quantizers:
    """Puts quantizers into a graph."""

    def __init__(self, graph: ir.Graph, model: QuantizedModel) -> None:
        self.editor = GraphEditor(graph)
        self.stored: dict[str, str] = {}
        self._model = model
        self._placed: set[str] = set()

    def weight(self, marker: ir.Node) -> None:
        """Replace a marker by a quantizer for each node that reads it: FINN takes none that several nodes read."""
        layer = self._model.layer(marker.attributes["name"].as_string())
        users = list(marker.outputs[0].uses())
        if layer.name not in self.stored:
            self.editor.fresh(layer.name, _on_grid(layer))
            self.stored[layer.name] = "BipolarQuant" if _is_bipolar(layer) else f"Quant {_bits(layer)}"
        for node, position in users:
            value = self._quantized_weight(marker, layer)
            value.shape, value.type = marker.outputs[0].shape, marker.outputs[0].type
            node.replace_input_with(position, value)
        if len(users) == 1:
            _name_result(users[0].node, layer)
        self.editor.graph.remove(marker, safe=True)

    def _quantized_weight(self, before: ir.Node, layer: QuantizedLayer) -> ir.Value:
        name = f"{layer.name}_quant"
        values = [self.editor.graph.initializers[layer.name], self._scalar(f"{layer.name}_scale", layer.scale)]
        if _is_bipolar(layer):
            return self._insert(before, "BipolarQuant", values, name, {})
        bits = _bits(layer)
        narrow = int(layer.q.min(initial=0)) > -(1 << (bits - 1))
        return self._quant(before, values, 0, bits, name, signed=True, narrow=narrow)

    def activation(self, marker: ir.Node) -> None:
        """Replace a marker by a quantizer, after a Relu where that makes no difference."""
        quantizer = self._model.activation(marker.attributes["name"].as_string())
        self._placed.add(quantizer.name)
        source = marker.inputs[0]
        assert source is not None
        producer = source.producer()
        if not source.is_graph_input():
            name_value(source, quantizer.name.rpartition(".")[0])
        signed, zero_point = _sign_and_zero_point(quantizer)
        if not signed and not zero_point and (producer is None or producer.op_type != "Relu"):
            source = self.editor.insert(marker, "Relu", [source], f"{quantizer.name}_positive")
        values = [source, self._scalar(f"{quantizer.name}_scale", quantizer.scale)]
        value = self._quant(marker, values, zero_point, quantizer.bits, quantizer.name, signed=signed, narrow=False)
        if marker.outputs[0].is_graph_output():
            # The quantizer keeps its name, and what the model returns gets its own.
            for node, position in tuple(marker.outputs[0].uses()):
                node.replace_input_with(position, value)
            value = self.editor.insert(marker, "Identity", [value], f"{quantizer.name}_returned")
        self.editor.replace(marker, value)

    def check_all_placed(self) -> None:
        """Check that every activation quantizer of the model was found in the graph.

        Raises:
            ExportError: some were not; the file would compute something else.
        """
        if lost := [quantizer.name for quantizer in self._model.activations if quantizer.name not in self._placed]:
            raise ExportError(
                f"{len(lost)} of {len(self._model.activations)} activation quantizers are not in the captured graph: "
                f"{', '.join(lost)}; torch.onnx.export takes another way through the model than its forward pass does"
            )

    def _quant(
        self, before: ir.Node, values: Sequence[ir.Value], zero_point: int, bits: int, name: str, *, signed: bool,
        narrow: bool,
    ) -> ir.Value:  # fmt: skip
        constants = [self._scalar(f"zero_point_{zero_point}", zero_point), self._scalar(f"bits_{bits}", bits)]
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": ROUNDING}
        return self._insert(before, "Quant", [*values, *constants], name, attributes)

    def _insert(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: dict[str, Any]
    ) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes, domain=QONNX_DOMAIN)
        return self.editor.insert_node(before, node, name)

    def _scalar(self, name: str, number: Any) -> ir.Value:
        return self.editor.constant(name, np.asarray(number, np.float32))


def _on_grid(layer: QuantizedLayer) -> Any:
    """Return float32(q)·Δ, after a check that a quantizer finds q again."""
    if layer.q.size == 0:
        raise ExportError(f"{layer.name} has no elements (shape {list(layer.shape)}); remove the layer")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = layer.q.astype(np.float32) * layer.scale
        found = np.rint(values / layer.scale)
    if not np.array_equal(found, layer.q):
        raise ExportError(f"{layer.name}: its scale {layer.scale} is too small or too large for weights in float32")
    return values


def _is_bipolar(layer: QuantizedLayer) -> bool:
    return bool((np.abs(layer.q) == 1).all())


def _bits(layer: QuantizedLayer) -> int:
    """Return the layer's bits; at least two, since readers take one signed bit for −1 and 1, without 0."""
    return max(2, twos_complement_bits(layer.q))


def _sign_and_zero_point(quantizer: ActivationQuantizer) -> tuple[bool, int]:
    """Return whether a quantizer is written as a signed one, and its zero point then."""
    signed = quantizer.zero_point == 1 << (quantizer.bits - 1)
    return signed, 0 if signed else quantizer.zero_point


def _name_result(user: ir.Node, layer: QuantizedLayer) -> None:
    """Give the result of a layer its name: of a linear layer on sequences, that of the sum with its bias."""
    path, _, attribute = layer.name.rpartition(".")
    name = path if path and attribute == "weight" else f"{layer.name}.product"
    if user.op_type == "Transpose":
        product = only_user(user.outputs[0])
        if product is None or product.op_type != "MatMul":
            return
        total = only_user(product.outputs[0])
        has_bias = total is not None and total.op_type == "Add" and any(_is_bias(value) for value in total.inputs)
        user = total if has_bias and total is not None else product
    elif user.op_type not in NAMED_OPS:
        return
    if not user.outputs[0].is_graph_output():
        name_value(user.outputs[0], name)


def _is_bias(value: ir.Value | None) -> bool:
    constant = constant_of(value)
    return constant is not None and constant.ndim == 1


def spell_out(graph: ir.Graph) -> None:
    """Add attributes that have their default value, or that the weight's shape tells: converters look them up."""
    shapes = {name: value.shape for name, value in graph.initializers.items()}
    for node in graph:
        if node.op_type not in WINDOWED or node.domain:
            continue
        if "kernel_shape" not in node.attributes:
            weight = node.inputs[1]
            source = None if weight is None else weight.producer()
            weight = weight if source is None else source.inputs[0]
            shape = None if weight is None else shapes.get(str(weight.name))
            if shape is None:
                continue  # a weight that the graph computes
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(shape.numpy()[2:]))
        axes = len(node.attributes["kernel_shape"].as_ints())
        wanted = {"strides": [1] * axes, "pads": [0] * 2 * axes}
        if node.op_type != "AveragePool":
            wanted["dilations"] = [1] * axes
        for name, numbers in wanted.items():
            if name not in node.attributes:
                node.attributes[name] = ir.AttrInt64s(name, numbers)
        if "Conv" in node.op_type and "group" not in node.attributes:
            node.attributes["group"] = ir.AttrInt64("group", 1)


def fix_batch(graph: ir.Graph) -> None:
    """Give inputs and outputs a batch of one: FINN and hls4ml generate hardware for one sample."""
    batch = graph.inputs[0].shape
    name = None if batch is None or isinstance(batch[0], int) else str(batch[0])
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([1 if not isinstance(d, int) and str(d) == name else d for d in value.shape])


def _notes(model: QuantizedModel) -> list[str]:
    """Return what FINN or hls4ml do not take, and how to get it."""
    notes = []
    if not model.activations:
        notes.append("activations are float: FINN and hls4ml build hardware of quantized ones; search with --act-bits")
    shifted = [a for a in model.activations if _sign_and_zero_point(a)[1]]
    if shifted:
        notes.append(
            f"{len(shifted)} of {len(model.activations)} activation quantizers have a zero point ({shifted[0].name}: "
            f"{shifted[0].zero_point}), which neither FINN nor hls4ml takes; search with --power-of-two-scales"
        )
    scales = [(layer.name, float(layer.scale)) for layer in model.layers]
    scales += [(quantizer.name, float(quantizer.scale)) for quantizer in model.activations]
    others = [(name, scale) for name, scale in scales if np.frexp(scale)[0] != 0.5]
    if others:
        notes.append(
            f"{len(others)} of {len(scales)} scales are no power of two ({others[0][0]}: {others[0][1]:.4g}), which "
            "hls4ml wants for its fixed-point numbers; search with --power-of-two-scales"
        )
    return notes
