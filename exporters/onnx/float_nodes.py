"""Which nodes compute in float, and why: read off the graph that the runtime really runs where that is at hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import onnx

from csqtool.errors import ExportError
from csqtool.exporting import ExportReport, FloatNode
from csqtool.onnx_file import flattened
from csqtool.onnx_session import optimized_graph
from csqtool.quantized_model import QuantizedModel
from exporters.onnx.options import OnnxOptions

# Operators of which onnxruntime has kernels on integers.
INTEGER_FORMS = {
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu", "Clip",
    "LeakyRelu", "Sigmoid", "Softmax", "Where",
}  # fmt: skip
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
KERNELS = re.compile(r"QLinear\w+|QGemm|\w*MatMulInteger\w*|DynamicQuantize\w+|ConvInteger|MatMulNBits|QAttention")
# What moves, reshapes or converts values, and computes nothing.
MOVES = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity",
    "Pad", "QuantizeLinear", "Range", "ReorderInput", "ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
INTEGER_RESULTS = {"QuantizeLinear", "Shape", "Size", "ArgMax", "Equal", "Greater", "Less", "Not", "And", "Or"}
FLOAT_RESULTS = {"DequantizeLinear", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def report_on(
    proto: onnx.ModelProto,
    content: bytes,
    model: QuantizedModel,
    options: OnnxOptions,
    notes: list[str],
    storage: dict[str, str],
) -> ExportReport:
    """Return the report on an exported file.

    Raises:
        ExportError: the chosen runtime is onnxruntime, and it does not load the file.
    """
    proto = flattened(proto, where="the exported file")
    explain = _Reasons(proto, model)
    if options.runtime != "onnxruntime":
        # Another runtime's graph cannot be looked into here: a node counts as integer if its whole pattern is there.
        nodes = [node for node in proto.graph.node if _computes(node) and explain.is_float(node)]
        found = [FloatNode(node.output[0], node.op_type, explain(node)) for node in nodes if not explain.pattern(node)]
        return ExportReport([*notes, f"not run in {options.runtime}: nodes are judged by their patterns"], {},
                            found, storage)  # fmt: skip
    try:
        graph = optimized_graph(content)
    except RuntimeError as error:
        raise ExportError(f"onnxruntime does not load the exported file: {error}") from error
    types = _Types(graph)
    by_name = {node.name: node for node in proto.graph.node} | {
        output: node for node in proto.graph.node for output in node.output
    }
    found = []
    for node in graph.node:
        if not _computes(node) or not (types.is_float(node.output[0]) or types.is_float(node.input[0])):
            continue
        original = by_name.get(re.sub(r"(_nchwc|_token_\d+)+$", "", node.name)) or by_name.get(node.output[0])
        original = original and explain.behind(original, node.op_type)
        name = original.output[0] if original is not None else node.output[0]
        found.append(FloatNode(name, node.op_type, explain(original or node)))
    kernels = Counter(node.op_type for node in graph.node)
    if kernels["MatMulNBits"] and not model.activations:
        # Accuracy is a setting of sessions, which no file can carry.
        count = kernels["MatMulNBits"]
        notes = [*notes, f"{count} of the linear layers run as MatMulNBits, which quantizes activations by itself: "
                 "outputs are off by some 1e-2, and verify says so; to compute in float32, export without "
                 "--weight-form qdq or set the session option session.qdq_matmulnbits_accuracy_level=1"]  # fmt: skip
    return ExportReport(notes, dict(sorted(kernels.items())), found, storage)


def _computes(node: onnx.NodeProto) -> bool:
    if node.op_type == "Max" and len(node.input) == 1:
        return False  # keeps a float weight from being quantized
    return node.op_type not in MOVES and not KERNELS.fullmatch(node.op_type) and bool(node.input) \
        and node.domain != "csqtool"  # fmt: skip


class _Types:
    """Tells float from integer values of an optimized graph, in which no types are written."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        float_types = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
        self._float = {t.name: t.data_type in float_types for t in graph.initializer}
        self._float |= {v.name: v.type.tensor_type.elem_type in float_types for v in graph.input}
        for node in graph.node:
            self._float |= dict.fromkeys(node.output, self._result(node))

    def _result(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Cast":
            return any(a.name == "to" and a.i in (1, 10, 11) for a in node.attribute)
        if node.op_type in FLOAT_RESULTS:
            return True
        if node.op_type == "QGemm":
            return len([name for name in node.input if name]) < 8  # without a scale for its result
        if node.op_type in INTEGER_RESULTS or KERNELS.fullmatch(node.op_type):
            return False
        position = 1 if node.op_type == "Where" else 0
        return len(node.input) > position and self.is_float(node.input[position])

    def is_float(self, name: str) -> bool:
        return self._float.get(name, False)


class _Reasons:
    """Says why a node of an exported graph cannot run on integers."""

    def __init__(self, proto: onnx.ModelProto, model: QuantizedModel) -> None:
        self._model = model
        self._makers = {output: node for node in proto.graph.node for output in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._constants = {t.name for t in proto.graph.initializer}
        self._types = _Types(proto.graph)
        self._wide = {layer.name for layer in model.layers if layer.bit_width > 8}

    def is_float(self, node: onnx.NodeProto) -> bool:
        return self._types.is_float(node.output[0]) and not self._is_constant(node.output[0])

    def pattern(self, node: onnx.NodeProto) -> bool:
        """Tell whether quantized values come in and go out of an operator that has an integer form."""
        return node.op_type in INTEGER_FORMS and not self._unquantized(node) and self._quantized_after(node)

    def __call__(self, node: onnx.NodeProto) -> str:  # noqa: PLR0911 - a reason each
        if not self._model.activations:
            return "activations are float"
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in self._constants:
            return f"its weight {node.input[1]} is float"
        if wide := [name for name in self._weights(node) if name in self._wide]:
            return f"{wide[0]} needs nine bits, integer kernels end at eight"
        if node.op_type not in INTEGER_FORMS:
            return f"no integer kernel for {node.op_type}"
        if names := self._unquantized(node):
            return f"its input {names[0]} is not quantized"
        if not self._quantized_after(node):
            return "its result is not quantized"
        return "the runtime does not fuse it"

    def behind(self, node: onnx.NodeProto, operator: str) -> onnx.NodeProto:
        """Return the node of `operator` that a runtime fused with the activation `node`; else `node` itself."""
        maker = self._makers.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        return maker if maker is not None and maker.op_type == operator else node

    def _unquantized(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and not self._is_constant(name) and not self._dequantized(name)]

    def _dequantized(self, name: str) -> bool:
        node = self._makers.get(name)
        while (
            node is not None and node.op_type in MOVES | {"MaxPool"} - {"Concat"} and node.op_type != "DequantizeLinear"
        ):
            node = self._makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def _quantized_after(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Gemm", "MatMul"):
            return True  # kernels exist that yield float
        users = self._users.get(node.output[0], [])
        passing = MOVES | {"Relu", "Clip", "MaxPool"}
        return bool(users) and all(
            user.op_type == "QuantizeLinear" or (user.op_type in passing and self._quantized_after(user))
            for user in users
        )

    def _is_constant(self, name: str) -> bool:
        if name in self._constants:
            return True
        node = self._makers.get(name)
        return node is not None and all(self._is_constant(i) for i in node.input if i)

    def _weights(self, node: onnx.NodeProto) -> Iterable[str]:
        queue = [name for name in node.input if self._is_constant(name)]
        while queue:
            name = queue.pop()
            yield name
            if name in self._makers:
                queue.extend(self._makers[name].input)
