"""What an ONNX file holds beside its dataflow: nothing may be left over, hidden or open to interpretation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import onnx

from csqtool.verifying.weights import Problem

STANDARD = ("", "ai.onnx")
FUNCTION_DOMAIN = "csqtool"  # the only domain of a file's own functions: runtimes have no operators in it
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
RUNTIME_SETTINGS = ("ort_config",)  # metadata that onnxruntime takes its settings from
Nodes = list[onnx.NodeProto]


def account(proto: onnx.ModelProto, flat: onnx.ModelProto, inputs: Collection[str]) -> Iterator[Problem]:
    """Yield what a file holds that is not on the way from its input to its output, by name.

    Args:
        proto: the file.
        flat: the same without functions and Constant nodes (`csqtool.onnx_file.flattened`).
        inputs: names that a model of several inputs has: PyTorch's graph tells whether an output needs one of them.
    """
    yield from _header_problems(proto)
    yield from _function_problems(proto)
    yield from _graph_problems(proto.graph)
    yield from _operator_problems(proto)
    yield from _leftovers(flat, inputs)


def is_bounded(proto: onnx.ModelProto) -> bool:
    """Tell whether a file surely ends when it is run: it has no control flow."""
    return not any(node.op_type in CONTROL_FLOW or _subgraphs(node) for node in _all_nodes(proto))


def _all_nodes(proto: onnx.ModelProto) -> Nodes:
    return [*proto.graph.node, *(node for function in proto.functions for node in function.node)]


def _subgraphs(node: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def _header_problems(proto: onnx.ModelProto) -> Iterator[Problem]:
    domains = [opset.domain for opset in proto.opset_import]
    called = {node.domain for node in _all_nodes(proto)}
    for domain, count in Counter("" if d == "ai.onnx" else d for d in domains).items():
        if count > 1:
            yield domain or "ai.onnx", "two opset imports of one domain"
        elif domain not in ("", FUNCTION_DOMAIN):
            yield domain, "an opset import of a domain that is neither ONNX's nor the file's own"
        elif domain == FUNCTION_DOMAIN and domain not in called:
            yield domain, "an opset import that nothing uses"
    if proto.training_info:
        yield "training_info", "the file holds training information"
    if "configuration" in proto.DESCRIPTOR.fields_by_name and proto.configuration:
        yield "configuration", "the file holds settings of devices"
    for entry in proto.metadata_props:
        if entry.key in RUNTIME_SETTINGS:
            yield entry.key, "metadata that set a runtime's options"


def _function_problems(proto: onnx.ModelProto) -> Iterator[Problem]:
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    seen: set[tuple[str, str]] = set()
    called = {(node.domain, node.op_type) for node in _all_nodes(proto)}
    for function in proto.functions:
        key, name = (function.domain, function.name), f"{function.domain}.{function.name}"
        if function.domain in STANDARD:
            yield name, "a function in the place of a standard operator"
        elif function.domain != FUNCTION_DOMAIN:
            yield name, f"a function outside of the domain {FUNCTION_DOMAIN}: a runtime may have its own"
        if key in seen:
            yield name, "two functions of one name"
        seen.add(key)
        if key not in called:
            yield name, "a function that nothing calls"
        if getattr(function, "overload", ""):
            yield name, "an overloaded function"
        for opset in function.opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            if versions.get(domain) != opset.version:
                yield name, f"a function of opset {opset.version}, in a file of opset {versions.get(domain)}"
        if len({o.domain for o in function.opset_import}) != len(function.opset_import):
            yield name, "two opset imports of one domain"
        yield from _parameter_problems(proto, function)


def _parameter_problems(proto: onnx.ModelProto, function: onnx.FunctionProto) -> Iterator[Problem]:
    """Yield parameters of a function that it does not read, and what its calls give that it does not take."""
    read = {a.ref_attr_name for node in function.node for a in node.attribute if a.ref_attr_name}
    taken = {*function.attribute, *(a.name for a in function.attribute_proto)}
    names = {name for node in function.node for name in node.input}
    for name in sorted(taken - read) + sorted(set(function.input) - names - set(function.output)):
        yield f"{function.domain}.{function.name}", f"its parameter {name} is not used"
    for node in _all_nodes(proto):
        if (node.domain, node.op_type) == (function.domain, function.name):
            for attribute in node.attribute:
                if attribute.name not in taken:
                    yield _name(node), f"an attribute {attribute.name} that its function does not take"


def _graph_problems(graph: onnx.GraphProto) -> Iterator[Problem]:
    tensors = [t.name for t in graph.initializer]
    sparse = [t.values.name for t in graph.sparse_initializer]
    for name in sparse:
        yield name, "a sparse tensor"
    if graph.quantization_annotation:
        yield graph.quantization_annotation[0].tensor_name, "a quantization annotation"
    for value in graph.value_info:
        yield value.name, "a type that is stated, not inferred: runtimes optimize with stated shapes"
    inputs = [value.name for value in graph.input]
    for name in sorted(set(inputs) & {*tensors, *sparse}):
        yield name, "an initializer that is also an input: a caller can replace it"
    made = [*inputs, *tensors, *(output for node in graph.node for output in node.output if output)]
    for name, count in Counter(made).items():
        if count > 1 and name not in inputs:
            yield name, "two values of one name"
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            yield value.name, f"a {value.type.WhichOneof('value')}, not a tensor"
    yield from _shared_axes(graph)


def _shared_axes(graph: onnx.GraphProto) -> Iterator[Problem]:
    """Yield names that make different axes equal. The same axis of several inputs, such as the batch, is one axis."""
    places: dict[str, list[int]] = {}
    for value in graph.input:
        for position, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                places.setdefault(dim.dim_param, []).append(position)
    for axis, positions in places.items():
        if len(set(positions)) > 1 or len(positions) > len(graph.input):
            yield axis, "one name for two axes of the input, which makes them equal"


def _operator_problems(proto: onnx.ModelProto) -> Iterator[Problem]:
    functions = {(function.domain, function.name) for function in proto.functions}
    for node in _all_nodes(proto):
        if node.op_type in CONTROL_FLOW or _subgraphs(node):
            yield _name(node), f"control flow: {node.op_type}"
        elif node.op_type in RANDOM:
            yield _name(node), f"{node.op_type} is not deterministic"
        elif node.domain not in STANDARD and (node.domain, node.op_type) not in functions:
            yield _name(node), f"an operator of {node.domain}: {node.op_type}"
        elif "Sequence" in node.op_type or "Optional" in node.op_type:
            yield _name(node), f"{node.op_type}: a value that is not a tensor"
        if getattr(node, "overload", ""):
            yield _name(node), "a call of an overloaded function"
        if "device_configurations" in node.DESCRIPTOR.fields_by_name and node.device_configurations:
            yield _name(node), "settings of devices"


def _leftovers(flat: onnx.ModelProto, inputs: Collection[str]) -> Iterator[Problem]:
    """Yield nodes and tensors that the output does not need, and inputs that the model does not have either."""
    makers = {output: node for node in flat.graph.node for output in node.output if output}
    queue, needed = [output.name for output in flat.graph.output], set[str]()
    while queue:
        name = queue.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            queue += [n for n in makers[name].input if n not in needed]
    for node in flat.graph.node:
        if not needed & set(node.output):
            yield _name(node), f"a dead node: the output does not need this {node.op_type}"
    for tensor in flat.graph.initializer:
        if tensor.name not in needed:
            yield tensor.name, "a tensor that the output does not need"
    for value in flat.graph.input:
        if value.name not in needed and value.name not in inputs:
            yield value.name, "an input that the output does not need"


def _name(node: onnx.NodeProto) -> str:
    return str(next((output for output in node.output if output), node.name or node.op_type))
