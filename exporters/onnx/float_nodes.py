"""Which nodes compute in float, and why: read from the runtime's own optimized graph where we can get it."""

from __future__ import annotations

import re
from collections import Counter

import onnx

from csqtool.errors import ExportError
from csqtool.exporting import ExportReport, FloatNode
from csqtool.onnx_file import flattened
from csqtool.onnx_isolated import optimized_graph
from csqtool.onnx_kernels import (
    FLOAT_RESULTS,
    INTEGER_FORMS,
    INTEGER_RESULTS,
    MOVES,
    PASSING_DEQUANTIZED,
    is_integer_kernel,
)
from csqtool.quantized_model import QuantizedModel
from exporters.onnx.options import OnnxOptions

FLOAT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Runtimes exchange QuantizeLinear with an operator of this set that precedes it.
PASSING_TO_QUANTIZER = MOVES | {"Relu", "Clip", "MaxPool"}


def report_on(
    proto: onnx.ModelProto,
    content: bytes,
    model: QuantizedModel,
    options: OnnxOptions,
    notes: list[str],
    storage: dict[str, str],
    float32_bytes: int,
) -> ExportReport:
    """Return the report on an exported file.

    Raises:
        ExportError: the chosen runtime is onnxruntime, and it does not load the file.
    """
    proto = flattened(proto, where="the exported file")
    explain = _Reasons(proto, model)
    if options.runtime != "onnxruntime":
        # We cannot see other runtimes' graphs: a node counts as integer where the pattern that they fuse is complete.
        nodes = [node for node in proto.graph.node if _computes(node) and explain.is_float(node)]
        found = [FloatNode(n.output[0], n.op_type, explain(n)) for n in nodes if not explain.has_pattern(n)]
        notes = [*notes, f"not run in {options.runtime}: nodes are judged by their patterns"]
        return ExportReport(float32_bytes, notes, {}, found, storage)
    try:
        graph = optimized_graph(content)
    except RuntimeError as error:
        raise ExportError(f"onnxruntime does not load the exported file: {error}") from error
    types = _Types(graph)
    by_name = {node.name: node for node in proto.graph.node if node.name} | {
        output: node for node in proto.graph.node for output in node.output
    }
    found = []
    places: dict[str, str] = {}  # of values of the optimized graph, those of the file that they are or come after
    for node in graph.node:
        original = by_name.get(re.sub(r"(_nchwc|_token_\d+)+$", "", node.name)) or by_name.get(node.output[0])
        original = original and explain.fused_into(original, node.op_type)
        before = next((places[name] for name in node.input if name in places), "")
        places |= dict.fromkeys(node.output, original.output[0] if original is not None else before)
        if not _computes(node) or not (types.is_float(node.output[0]) or types.is_float(node.input[0])):
            continue
        if original is not None:
            found.append(FloatNode(original.output[0], node.op_type, explain(original)))
        else:  # the runtime has taken an operator apart, such as HardSwish
            place = f"after {before}" if before else node.output[0]
            found.append(FloatNode(place, node.op_type, explain.of_part(node)))
    kernels = Counter(node.op_type for node in graph.node)
    if kernels["MatMulNBits"] and not model.activations:
        # Its accuracy is a setting of the session: a file cannot carry it.
        count = kernels["MatMulNBits"]
        notes = [*notes, f"{count} of the linear layers run as MatMulNBits, which quantizes activations by itself: "
                 "outputs are off by some 1e-2, and verify says so; to compute in float32, export without "
                 "--weight-form qdq or set the session option session.qdq_matmulnbits_accuracy_level=1"]  # fmt: skip
    return ExportReport(float32_bytes, notes, dict(sorted(kernels.items())), found, storage)


def _computes(node: onnx.NodeProto) -> bool:
    if node.op_type == "Max" and len(node.input) == 1:
        return False  # the exporter puts it before a quantizer to keep a float weight from being quantized
    return node.op_type not in MOVES and not is_integer_kernel(node.op_type) and bool(node.input)


class _Types:
    """Tells float from integer values of a graph that does not record types."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._float = {t.name: t.data_type in FLOAT_TYPES for t in graph.initializer}
        self._float |= {v.name: v.type.tensor_type.elem_type in FLOAT_TYPES for v in graph.input}
        for node in graph.node:
            self._float |= dict.fromkeys(node.output, self._result(node))

    def _result(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Cast":
            return any(a.name == "to" and a.i in FLOAT_TYPES for a in node.attribute)
        if node.op_type in FLOAT_RESULTS:
            return True
        if node.op_type == "QGemm":
            return sum(map(bool, node.input)) < 8  # without the scale of an integer result
        if node.op_type in INTEGER_RESULTS or is_integer_kernel(node.op_type):
            return False
        position = 1 if node.op_type == "Where" else 0
        return len(node.input) > position and self.is_float(node.input[position])

    def is_float(self, name: str) -> bool:
        return self._float.get(name, False)


class _Reasons:
    """Says why a node of an exported graph cannot run on integers.

    All that depends on a node's neighbours is worked out once, in or against the order of the nodes, which ONNX
    requires to be topological: recursion from node to node would take exponential time where residuals branch.
    """

    def __init__(self, proto: onnx.ModelProto, model: QuantizedModel) -> None:
        self._quantizes_activations = bool(model.activations)
        self._makers = {output: node for node in proto.graph.node for output in node.output}
        self._stored = {t.name for t in proto.graph.initializer}
        self._constants = self._stored | {""}  # an optional input that is left out has an empty name
        self._dequantized: set[str] = set()
        for node in proto.graph.node:
            if all(name in self._constants for name in node.input):
                self._constants.update(node.output)
            if node.op_type == "DequantizeLinear" or (
                node.op_type in PASSING_DEQUANTIZED and node.input and node.input[0] in self._dequantized
            ):
                self._dequantized.update(node.output)
        self._requantized = _requantized(proto.graph)
        self._types = _Types(proto.graph)
        self._wide = {layer.name for layer in model.layers if layer.bit_width > 8}

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Return whether a node computes float values from the model's inputs."""
        return self._types.is_float(node.output[0]) and node.output[0] not in self._constants

    def has_pattern(self, node: onnx.NodeProto) -> bool:
        """Return whether inputs and outputs are quantized and the operator has an integer form."""
        return node.op_type in INTEGER_FORMS and not self._unquantized(node) and self._quantized_after(node)

    def __call__(self, node: onnx.NodeProto) -> str:  # noqa: PLR0911 - a reason each
        """Return the reason as text."""
        if not self._quantizes_activations:
            return "activations are float"
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in self._stored:
            return f"its weight {node.input[1]} is float"
        if wide := [name for name in self._constants_of(node) if name in self._wide]:
            return f"{wide[0]} needs nine bits, integer kernels end at eight"
        if node.op_type not in INTEGER_FORMS:
            return f"no integer kernel for {node.op_type}"
        if names := self._unquantized(node):
            return f"its input {names[0]} is not quantized"
        if not self._quantized_after(node):
            return "its result is not quantized"
        return "the runtime does not fuse it"

    def of_part(self, node: onnx.NodeProto) -> str:
        """Return why a node computes in float that a runtime made of a part of another operator."""
        if not self._quantizes_activations:
            return "activations are float"
        if node.op_type in INTEGER_FORMS:
            return "part of an operator without an integer kernel"
        return f"no integer kernel for {node.op_type}"

    def fused_into(self, node: onnx.NodeProto, operator: str) -> onnx.NodeProto:
        """Return the node of `operator` that a runtime fused the activation function `node` into; else `node`."""
        maker = self._makers.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        return maker if maker is not None and maker.op_type == operator else node

    def _unquantized(self, node: onnx.NodeProto) -> list[str]:
        return [n for n in node.input if n not in self._constants and n not in self._dequantized]

    def _quantized_after(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Gemm", "MatMul"):
            return True  # integer kernels exist that return float
        return node.output[0] in self._requantized

    def _constants_of(self, node: onnx.NodeProto) -> list[str]:
        """Return the names of all constants that a node's inputs are computed from, and theirs."""
        found: dict[str, None] = {}  # an ordered set
        queue = [name for name in node.input if name in self._constants]
        while queue:
            name = queue.pop()
            if name and name not in found:
                found[name] = None
                queue.extend(self._makers[name].input if name in self._makers else ())
        return list(found)


def _requantized(graph: onnx.GraphProto) -> set[str]:
    """Return the values of which all uses lead to a quantizer, through operators that pass integers on."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in reversed(graph.node):
        for name in node.output:
            if name in users and all(
                user.op_type == "QuantizeLinear" or (user.op_type in PASSING_TO_QUANTIZER and user.output[0] in found)
                for user in users[name]
            ):
                found.add(name)
    return found
