"""From marker nodes to QDQ: integer weights, folded BatchNorm, int32 biases, activation quantizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

from csqtool.errors import ExportError
from csqtool.folding import bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.nn.net import MARKER_DOMAIN
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from exporters.onnx.cleanup import NAMED

INT16_OPSET = 21  # DequantizeLinear takes int16 from here on
BIASED_OPS = {"Conv": 2, "Gemm": 2, "ConvTranspose": 2}  # operator to the position of its bias


def rewrite(graph_model: ir.Model, model: QuantizedModel) -> list[str]:
    """Replace every marker of a captured graph, in place.

    Returns:
        Notes for the user.

    Raises:
        ExportError: a weight is used in a way that cannot be carried.
    """
    rewriter = _Rewriter(graph_model.graph, model)
    for node in list(graph_model.graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Weight":
            rewriter.weight(node)
    for node in list(graph_model.graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Activation":
            rewriter.activation(node)
        elif node.op_type == "ReduceMean" and not node.domain:
            rewriter.global_average_pool(node)
    graph_model.opset_imports.pop(MARKER_DOMAIN, None)
    if any(layer.q.dtype == np.int16 for layer in model.layers):
        # Operators that torch writes for the capture opset mean the same in this one.
        graph_model.opset_imports[""] = INT16_OPSET
        graph_model.ir_version = 10
    else:
        graph_model.ir_version = 8
    if missing := [layer.name for layer in model.layers if layer.name not in rewriter.done]:
        rewriter.notes.append(f"not used by the forward pass, so not in the graph: {', '.join(missing)}")
    return rewriter.notes


class _Rewriter:
    def __init__(self, graph: ir.Graph, model: QuantizedModel) -> None:
        self._graph = graph
        self._model = model
        self._activations = {a.name: a for a in model.activations}
        self.notes: list[str] = []
        self.done: dict[str, ir.Value] = {}

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return the initializer `name`, making it if there is none."""
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def _insert(self, before: ir.Node, op_type: str, inputs: list[Any], output: str, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        _name(node.outputs[0], output)
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let `value` stand for the only output of `node`, and remove the node."""
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def weight(self, marker: ir.Node) -> None:
        """Put DequantizeLinear in a weight marker's place, with the BatchNorm behind its layer folded in."""
        layer = self._model.layer(marker.attributes["name"].as_string())
        if layer.name in self.done:
            self._replace(marker, self.done[layer.name])
            return
        users = [use.node for use in marker.outputs[0].uses()]
        user = users[0] if len(users) == 1 else None
        if layer.batch_norm is not None:
            if user is None or not _channels_first(user):
                raise ExportError(f"{layer.name}: cannot fold {layer.batch_norm} into this use of the weight")
            value = self._fold(marker, layer, user)
        else:
            value = self._dequantize(marker, layer, layer.q, np.asarray(layer.scale), axis=None)
            if user is not None:
                self._snap_bias(user, layer, np.asarray(layer.scale))
        if user is not None and user.op_type in BIASED_OPS and not user.outputs[0].is_graph_output():
            _name(user.outputs[0], layer.batch_norm or layer.name.rpartition(".")[0])
        if layer.q.dtype == np.int16:
            self.notes.append(f"{layer.name} runs in float: its integers need nine bits, kernels exist up to eight")
        self.done[layer.name] = value
        self._replace(marker, value)

    def _dequantize(
        self, marker: ir.Node, layer: QuantizedLayer, q: NDArray[Any], scale: NDArray[Any], axis: int | None
    ) -> ir.Value:
        inputs = [
            self.constant(layer.name, q),
            self.constant(f"{layer.name}_scale", scale),
            self.constant(f"{layer.name}_zero_point", np.zeros(scale.shape, q.dtype)),
        ]
        attributes = {} if axis is None else {"axis": axis}
        return self._insert(marker, "DequantizeLinear", inputs, f"{layer.name}_dequantized", **attributes)

    def _fold(self, marker: ir.Node, layer: QuantizedLayer, user: ir.Node) -> ir.Value:
        (norm_use,) = user.outputs[0].uses()
        norm_node = norm_use.node
        if norm_node.op_type != "BatchNormalization":
            raise ExportError(f"{layer.name}: expected {layer.batch_norm} behind it, found {norm_node.op_type}")
        assert layer.batch_norm is not None
        epsilon = self._model.info["batch_norm_epsilon"][layer.batch_norm]
        norm = read_batch_norm(self._model.tensors, layer.batch_norm, epsilon)
        folded = fold_scale(layer.scale, norm.factor)
        sign = folded.sign.reshape(-1, *[1] * (layer.q.ndim - 1))  # (C, 1, …)
        value = self._dequantize(marker, layer, layer.q * sign.astype(layer.q.dtype), folded.scale, axis=0)
        own_bias = self._model.tensors.get(_bias_name(layer))
        self._set_bias(user, layer, norm.effective_bias(own_bias), folded.scale)
        self._replace_norm(norm_node, user)
        return value

    def _replace_norm(self, norm: ir.Node, user: ir.Node) -> None:
        convenience.replace_all_uses_with(norm.outputs[0], user.outputs[0], replace_graph_outputs=True)
        self._graph.remove(norm, safe=True)

    def _snap_bias(self, user: ir.Node, layer: QuantizedLayer, scale: NDArray[Any]) -> None:
        """Store the bias of a layer without BatchNorm as integers, where its input is quantized."""
        bias = self._model.tensors.get(_bias_name(layer))
        position = BIASED_OPS.get(user.op_type)
        has_bias = position is not None and len(user.inputs) > position and user.inputs[position] is not None
        if bias is not None and has_bias and layer.input_quantizer is not None:
            self._set_bias(user, layer, bias, np.full(bias.shape, scale, np.float32))

    def _set_bias(self, user: ir.Node, layer: QuantizedLayer, bias: NDArray[Any], scale: NDArray[Any]) -> None:
        position = BIASED_OPS[user.op_type]
        value: ir.Value | None = None
        name = _bias_name(layer)
        if layer.input_quantizer is not None:
            step = bias_step(self._activations[layer.input_quantizer].scale, scale)
            integers = integer_bias(bias, step)
            if integers is not None:
                inputs = [self._fresh(name, integers), self.constant(f"{name}_scale", step)]
                value = self._insert(user, "DequantizeLinear", inputs, f"{name}_dequantized", axis=0)
        if value is None:
            value = self._fresh(name, bias.astype(np.float32))
        if len(user.inputs) <= position:
            user.resize_inputs(position + 1)
        user.replace_input_with(position, value)

    def _fresh(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return a new initializer; one that torch wrote under the same name stays apart until it is unused."""
        old = self._graph.initializers.pop(name, None)
        if old is not None:
            old.name = f"{name}_captured"
            self._graph.initializers[old.name] = old
        return self.constant(name, array)

    def activation(self, marker: ir.Node) -> None:
        """Put QuantizeLinear, below eight bits a Clip on the integers, and DequantizeLinear in a marker's place."""
        quantizer = self._activations[marker.attributes["name"].as_string()]
        source = marker.inputs[0]
        assert source is not None
        if not source.is_graph_input():
            _name(source, quantizer.name.rpartition(".")[0])
        scale = self.constant(f"{quantizer.name}_scale", np.asarray(quantizer.scale, np.float32))
        zero_point = self.constant(f"{quantizer.name}_zero_point", np.asarray(quantizer.zero_point, np.uint8))
        quantized = self._insert(marker, "QuantizeLinear", [source, scale, zero_point], f"{quantizer.name}_quantized")
        if quantizer.bits < 8:
            # Clip on uint8, behind the rounding, keeps the integer kernels; a float Clip before it would not.
            bounds = [
                self.constant("uint8_0", np.asarray(0, np.uint8)),
                self.constant(f"uint8_{quantizer.largest}", np.asarray(quantizer.largest, np.uint8)),
            ]
            quantized = self._insert(marker, "Clip", [quantized, *bounds], f"{quantizer.name}_clipped")
        value = self._insert(marker, "DequantizeLinear", [quantized, scale, zero_point], quantizer.name)
        self._replace(marker, value)

    def global_average_pool(self, node: ir.Node) -> None:
        """Write a mean over all spatial axes as the pooling that integer kernels exist for."""
        source, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        if source is None or source.shape is None or axes is None or axes.const_value is None:
            return
        rank = len(source.shape)
        chosen = sorted(int(a) % rank for a in axes.const_value.numpy().reshape(-1))
        keepdims = node.attributes.get("keepdims")
        if rank < 3 or chosen != list(range(2, rank)):
            return
        value = self._insert(node, "GlobalAveragePool", [source], f"{node.outputs[0].name}_pooled")
        value.shape = ir.Shape([*list(source.shape)[:2], *[1] * (rank - 2)])
        if keepdims is not None and keepdims.as_int() == 0:
            value = self._insert(node, "Flatten", [value], f"{node.outputs[0].name}_flat", axis=1)
        self._replace(node, value)


def _name(value: ir.Value, name: str) -> None:
    value.name = name
    value.meta[NAMED] = True


def _bias_name(layer: QuantizedLayer) -> str:
    return layer.name.removesuffix("weight") + "bias"


def _channels_first(node: ir.Node) -> bool:
    """Tell whether a node's weight has its output channels on axis 0."""
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return transposed is not None and transposed.as_int() == 1
    return node.op_type == "Conv"
