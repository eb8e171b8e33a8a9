"""Replaces marker nodes: by stored integers, folded BatchNorm, int32 biases and activation quantizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from csqtool.errors import ExportError
from csqtool.folding import bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.nn.markers import MARKER_DOMAIN
from csqtool.onnx_kernels import PASSING_DEQUANTIZED
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from exporters.onnx.compact import compact
from exporters.onnx.functions import FUNCTION_DOMAIN
from exporters.onnx.graph import GraphEditor, constant_of, name_value, only_user, replace_value
from exporters.onnx.options import OnnxOptions
from exporters.onnx.pooling import global_average_pool
from exporters.onnx.storage import WeightStore

# onnxruntime itself turns a float bias into round(bias / (s_x·s_w)). Below this limit float32 determines that integer.
EXACT_IN_FLOAT = 1 << 22
BIASED_OPS = {"Conv": 2, "Gemm": 2, "ConvTranspose": 2}  # operator to the position of its bias
NAMED_OPS = (*BIASED_OPS, "Gather")  # whose results get the layer's name
WEIGHTED_OPS = (*BIASED_OPS, "MatMul")
# The lowest version of ONNX's file format (IR version) for each opset; functions need 8.
IR_VERSIONS = {18: 8, 19: 9, 21: 10, 25: 13}
QDQ_OPSET = 19  # onnx's reference evaluator knows DequantizeLinear from here on


def rewrite(graph_model: ir.Model, model: QuantizedModel, options: OnnxOptions) -> tuple[list[str], dict[str, str]]:
    """Replace every marker of a captured graph, in place.

    Returns:
        Notes for the user, and how each layer's integers are stored.

    Raises:
        ExportError: a weight is used in a way that ONNX cannot express.
    """
    weights = _Weights(graph_model.graph, model, options)
    for node in list(graph_model.graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Weight":
            weights.place(node)
    activations = _Activations(graph_model.graph, model, weights.beyond_int32)
    for node in list(graph_model.graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Activation":
            activations.place(node)
        elif node.op_type == "ReduceMean" and not node.domain:
            global_average_pool(activations.editor, node)
    activations.check_all_placed()
    graph_model.opset_imports.pop(MARKER_DOMAIN, None)
    # The operators that torch writes for the capture opset have the same meaning in later ones.
    opset = max(graph_model.opset_imports[""], weights.store.opset)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph_model.graph):
        opset = max(opset, QDQ_OPSET)
    graph_model.opset_imports[""] = opset
    graph_model.ir_version = IR_VERSIONS[opset]
    functions, coded = compact(graph_model.graph, weights.store.waiting) if weights.store.waiting else ({}, {})
    for _, function in sorted(functions.items()):
        graph_model.functions[function.identifier()] = function
        graph_model.opset_imports[FUNCTION_DOMAIN] = 1
        function.opset_imports[""] = opset  # onnxruntime requires one opset in the whole model
    missing = [layer.name for layer in model.layers if layer.name not in weights.done]
    notes = [f"not used by the forward pass, so not in the graph: {', '.join(missing)}"] if missing else []
    return notes, weights.store.stored | coded


class _Weights:
    """Replaces weight markers by integers and scales, and sets the biases of their layers."""

    def __init__(self, graph: ir.Graph, model: QuantizedModel, options: OnnxOptions) -> None:
        self._editor = GraphEditor(graph)
        self._model = model
        self._activations = {a.name: a for a in model.activations}
        self._folds = options.folds
        self.store = WeightStore(self._editor, options)
        self.done: dict[str, ir.Value] = {}
        self.beyond_int32: set[ir.Node] = set()  # layers whose bias is no int32 in steps of their product
        self._quantized = _layers_on_integers(graph, model)

    def place(self, marker: ir.Node) -> None:
        """Replace a marker by its weight, and fold the BatchNorm that follows the layer into it."""
        layer = self._model.layer(marker.attributes["name"].as_string())
        if layer.name in self.done:
            self._editor.replace(marker, self.done[layer.name])
            return
        user = only_user(marker.outputs[0])
        if layer.batch_norm is not None:
            if user is None or not _channels_first(user):
                raise ExportError(f"{layer.name}: cannot fold {layer.batch_norm} into this use of the weight")
            value = self._fold(marker, layer, user)
        else:
            if user is not None and user.op_type == "Transpose":
                # Integers are transposed, so that DequantizeLinear directly precedes the product that it fuses with.
                value = self._transposed(marker, layer, user)
                self.done[layer.name] = value
                return
            value = self._dequantize(marker, layer, layer.q, np.asarray(layer.scale))
            if user is not None:
                self._snap_bias(user, layer, np.asarray(layer.scale))
        if user is not None and user.op_type in NAMED_OPS and not user.outputs[0].is_graph_output():
            path, _, attribute = layer.name.rpartition(".")
            is_its_modules = path and attribute == "weight"
            name_value(user.outputs[0], layer.batch_norm or (path if is_its_modules else f"{layer.name}.product"))
        self.done[layer.name] = value
        self._editor.replace(marker, value)

    def _transposed(self, marker: ir.Node, layer: QuantizedLayer, transpose: ir.Node) -> ir.Value:
        integers = self.store.integers(marker, layer, layer.q)
        permutation = transpose.attributes["perm"].as_ints()
        name = f"{layer.name}_transposed"
        turned = self._editor.insert(transpose, "Transpose", [integers], name, perm=permutation)
        value = self._to_float(transpose, layer, turned, np.asarray(layer.scale), None)
        self._editor.replace(transpose, value)
        self._editor.graph.remove(marker, safe=True)
        return value

    def _dequantize(self, marker: ir.Node, layer: QuantizedLayer, q: NDArray[Any], scale: NDArray[Any]) -> ir.Value:
        integers = self.store.integers(marker, layer, q)
        return self._to_float(marker, layer, integers, scale, 0 if scale.ndim else None)

    def _to_float(
        self, before: ir.Node, layer: QuantizedLayer, integers: ir.Value, scale: NDArray[Any], axis: int | None
    ) -> ir.Value:
        """Return integers·scale as float, in the chosen form; `axis` is the axis of the scales."""
        name = f"{layer.name}_dq"
        if self._folds and layer.name not in self._quantized:
            # An input is float: as a float weight it costs no time, and no runtime quantizes its input by itself.
            shape = scale.shape + (1,) * (layer.q.ndim - 1 if scale.ndim else 0)  # (C, 1, …)
            as_float = self._editor.insert(before, "Cast", [integers], f"{layer.name}_float", to=ir.DataType.FLOAT)
            factor = self._editor.fresh(f"{layer.name}_scale", scale.reshape(shape))
            return self._editor.insert(before, "Mul", [as_float, factor], name)
        inputs = [integers, self._editor.fresh(f"{layer.name}_scale", scale)]
        if layer.name in self._quantized and (not scale.ndim or len(layer.shape) == 2):
            # onnxruntime fuses QGemm only with a zero point; convolutions need none.
            kind = self.store.dtype(layer.name, layer.q.dtype)
            name_of_zero = f"{layer.name}_zero_point" if scale.ndim else f"{kind.name}_zero"
            inputs.append(self._editor.constant(name_of_zero, np.zeros(scale.shape, kind)))
        return self._editor.insert(before, "DequantizeLinear", inputs, name, **({} if axis is None else {"axis": axis}))

    def _fold(self, marker: ir.Node, layer: QuantizedLayer, user: ir.Node) -> ir.Value:
        norm_node = only_user(user.outputs[0])
        if norm_node is None or norm_node.op_type != "BatchNormalization":
            found = "nothing" if norm_node is None else norm_node.op_type
            raise ExportError(f"{layer.name}: expected {layer.batch_norm} after it, found {found}")
        norm = read_batch_norm(layer, self._model.tensors)
        folded = fold_scale(layer.scale, norm.factor)
        sign = folded.sign.reshape(-1, *[1] * (layer.q.ndim - 1))  # (C, 1, …)
        q = layer.q.astype(np.int16) * sign
        if q.max(initial=0) > np.iinfo(layer.q.dtype).max:
            raise ExportError(
                f"{layer.name}: a channel holds {layer.q.min()} and {layer.batch_norm} flips its sign, "
                f"which {layer.q.dtype} cannot hold"
            )
        value = self._dequantize(marker, layer, q.astype(layer.q.dtype), folded.scale)
        own_bias = self._model.tensors.get(_bias_name(layer))
        self._set_bias(user, layer, norm.effective_bias(own_bias), folded.scale)
        replace_value(norm_node.outputs[0], user.outputs[0])
        self._editor.graph.remove(norm_node, safe=True)
        return value

    def _snap_bias(self, user: ir.Node, layer: QuantizedLayer, scale: NDArray[Any]) -> None:
        """Set the bias of a layer without BatchNorm on the integer grid, if its input is quantized."""
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
            if integers is None:
                self.beyond_int32.add(user)
            fits = integers is not None and np.abs(integers).max(initial=0) < EXACT_IN_FLOAT
            # QGemm fuses only with an int32 bias. A convolution takes a float bias as well, which takes fewer bytes.
            if integers is not None and not (user.op_type == "Conv" and fits):
                inputs = [self._editor.fresh(name, integers), self._editor.constant(f"{name}_scale", step)]
                value = self._editor.insert(user, "DequantizeLinear", inputs, f"{name}_dq", axis=0)
        if value is None:
            value = self._editor.fresh(name, bias.astype(np.float32))
        if len(user.inputs) <= position:
            user.resize_inputs(position + 1)
        user.replace_input_with(position, value)


def _layers_on_integers(graph: ir.Graph, model: QuantizedModel) -> set[str]:
    """Return the layers whose input is quantized in each use: by one quantizer, or each use by its own."""
    uses: dict[str, list[ir.Node]] = {}
    for node in graph:
        if node.domain == MARKER_DOMAIN and node.op_type == "Weight":
            users = [use.node for use in node.outputs[0].uses()]
            for user in list(users):
                if user.op_type == "Transpose":
                    users.remove(user)
                    users += [use.node for use in user.outputs[0].uses()]
            uses.setdefault(node.attributes["name"].as_string(), []).extend(users)
    return {
        layer.name for layer in model.layers
        if layer.input_quantizer is not None
        or all(node.op_type in WEIGHTED_OPS and _is_quantized(node.inputs[0]) for node in uses.get(layer.name, ()))
    }  # fmt: skip


def _is_quantized(value: ir.Value | None) -> bool:
    """Tell whether a value is what an activation quantizer returns, in whatever layout."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in PASSING_DEQUANTIZED and not producer.domain:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return producer is not None and producer.domain == MARKER_DOMAIN and producer.op_type == "Activation"


class _Activations:
    """Replaces activation markers by QuantizeLinear and DequantizeLinear."""

    def __init__(self, graph: ir.Graph, model: QuantizedModel, beyond_int32: set[ir.Node]) -> None:
        self.editor = GraphEditor(graph)
        self._beyond_int32 = beyond_int32
        self._activations = {a.name: a for a in model.activations}
        self._placed: set[str] = set()

    def check_all_placed(self) -> None:
        """Check that every activation quantizer of the model was found in the graph.

        Raises:
            ExportError: some were not; the file would compute something else.
        """
        if lost := [name for name in self._activations if name not in self._placed]:
            raise ExportError(
                f"{len(lost)} of {len(self._activations)} activation quantizers are not in the captured graph: "
                f"{', '.join(lost)}; torch.onnx.export takes another way through the model than its forward pass does"
            )

    def place(self, marker: ir.Node) -> None:
        """Replace a marker by QuantizeLinear, a Clip if the integers do not use all of uint8, and DequantizeLinear."""
        quantizer = self._activations[marker.attributes["name"].as_string()]
        self._placed.add(quantizer.name)
        source = marker.inputs[0]
        assert source is not None
        low, high = 0, quantizer.largest
        bounds = _clip_bounds(source)
        if bounds is not None:
            # Rounding is monotonic, so the integers can be clipped instead of the floats. A float Clip would
            # separate the convolution from the quantizer that it fuses with.
            low, high = (_quantize(b, quantizer.scale, quantizer.zero_point, high) for b in bounds)
            clip = source.producer()
            assert clip is not None  # or a ReLU: the clip at zero
            source = clip.inputs[0]
            assert source is not None
            marker.replace_input_with(0, source)
            self.editor.graph.remove(clip, safe=True)
        maker = source.producer()
        # What another quantizer returns has its name already: the operation between them changes nothing.
        if maker is not None and maker.op_type != "DequantizeLinear":
            name_value(source, quantizer.name.rpartition(".")[0])
        if _has_float_weight(maker) or _shares_its_bias(maker) or maker in self._beyond_int32:
            # Directly before a quantizer, onnxruntime would quantize such a weight by itself, to eight bits, round a
            # shared bias to the grid of one of its uses, where it is on none, and let a bias beyond int32 overflow.
            source = self.editor.insert(marker, "Max", [source], f"{quantizer.name}_kept")
        scale = self.editor.constant(f"{quantizer.name}_scale", np.asarray(quantizer.scale, np.float32))
        zero_point = self.editor.constant(f"uint8_{quantizer.zero_point}", np.asarray(quantizer.zero_point, np.uint8))
        quantized = self.editor.insert(marker, "QuantizeLinear", [source, scale, zero_point], f"{quantizer.name}_q")
        if low > 0 or high < 255:
            # A Clip on uint8, after rounding, keeps the integer kernels; a float Clip before it would not.
            limits = [self.editor.constant(f"uint8_{bound}", np.asarray(bound, np.uint8)) for bound in (low, high)]
            quantized = self.editor.insert(marker, "Clip", [quantized, *limits], f"{quantizer.name}_clipped")
        value = self.editor.insert(marker, "DequantizeLinear", [quantized, scale, zero_point], quantizer.name)
        if marker.outputs[0].is_graph_output():
            # The quantizer keeps its name, and what the model returns gets its own.
            for node, position in tuple(marker.outputs[0].uses()):
                node.replace_input_with(position, value)
            value = self.editor.insert(marker, "Identity", [value], f"{quantizer.name}_returned")
        self.editor.replace(marker, value)


def _has_float_weight(node: ir.Node | None) -> bool:
    """Return whether a node multiplies by a constant of the user's model that is not quantized."""
    if node is None or node.op_type not in WEIGHTED_OPS or node.domain:
        return False
    return constant_of(node.inputs[1]) is not None


def _shares_its_bias(node: ir.Node | None) -> bool:
    """Tell whether a node adds a bias, and another one uses its weight: the layer runs several times."""
    if node is None or node.op_type not in BIASED_OPS or node.domain or len(node.inputs) <= BIASED_OPS[node.op_type]:
        return False
    weight, bias = node.inputs[1], node.inputs[BIASED_OPS[node.op_type]]
    return weight is not None and bias is not None and len(tuple(weight.uses())) > 1


def _clip_bounds(source: ir.Value) -> tuple[float, float] | None:
    """Return the bounds of a ReLU or Clip that feeds nothing but a quantizer, None where there is none."""
    clip = source.producer()
    if clip is not None and clip.op_type == "Relu" and only_user(source) is not None:
        return 0.0, np.inf
    if clip is None or clip.op_type != "Clip" or clip.domain or only_user(source) is None or len(clip.inputs) != 3:
        return None
    low, high = (constant_of(bound) for bound in clip.inputs[1:])
    return None if low is None or high is None else (float(low), float(high))


def _quantize(x: float, scale: np.float32, zero_point: int, largest: int) -> int:
    return int(np.clip(np.rint(np.float32(x) / scale) + zero_point, 0, largest))


def _bias_name(layer: QuantizedLayer) -> str:
    return layer.name.removesuffix("weight") + "bias"


def _channels_first(node: ir.Node) -> bool:
    """Return whether a node's weight has its output channels on axis 0."""
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return transposed is not None and transposed.as_int() == 1
    return node.op_type == "Conv"
