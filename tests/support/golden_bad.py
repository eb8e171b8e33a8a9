"""Writes ``tests/golden_bad``: ONNX files with one defect each, by its name.

Run as ``python -m tests.support.golden_bad``.
The files are small, of fixed bytes, and kept for ever: no command may end otherwise than with one line on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parents[1] / "golden_bad"
Proto = onnx.ModelProto


def base(*before: onnx.NodeProto, tensors: list[TensorProto] | None = None, weight: str = "w") -> Proto:
    """Return a matrix product whose weight `before` may compute."""
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")] if tensors is None else tensors
    graph = helper.make_graph(
        [*before, helper.make_node("MatMul", ["input", weight], ["output"])], "g",
        [helper.make_tensor_value_info("input", 1, ["N", 4])], [helper.make_tensor_value_info("output", 1, ["N", 3])],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def functions_nested(count: int, calls: int) -> Proto:
    proto = base(helper.make_node("f0", ["w"], ["w2"], domain="own"), weight="w2")
    proto.opset_import.add(domain="own", version=1)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    for level in range(count):
        names = ["a", *(f"b{i}" for i in range(calls - 1)), "c"]
        inner = ("Identity", "") if level == count - 1 else (f"f{level + 1}", "own")
        nodes = [helper.make_node(inner[0], [x], [y], domain=inner[1]) for x, y in pairwise(names)]
        proto.functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, opsets))
    return proto


def function_of_itself() -> Proto:
    proto = functions_nested(1, 2)
    proto.functions[0].node[0].op_type, proto.functions[0].node[0].domain = "f0", "own"
    return proto


def loop(turns: int) -> Proto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["kept"]), helper.make_node("Identity", ["value"], ["same"])], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("keep", 9, []),
         helper.make_tensor_value_info("value", 1, [4, 3])],
        [helper.make_tensor_value_info("kept", 9, []), helper.make_tensor_value_info("same", 1, [4, 3])],
    )  # fmt: skip
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
               numpy_helper.from_array(np.asarray(turns, np.int64), "turns"),
               numpy_helper.from_array(np.asarray(True), "on")]  # fmt: skip
    return base(helper.make_node("Loop", ["turns", "on", "w"], ["w2"], body=body), tensors=tensors, weight="w2")


def endless_loop() -> Proto:
    """A Loop without a number of turns, whose condition never changes."""
    proto = loop(1)
    proto.graph.node[0].input[0] = ""
    return proto


def nested_if(depth: int) -> Proto:
    def branch(level: int, name: str) -> onnx.GraphProto:
        inner = (
            helper.make_node("Identity", ["w"], [name]) if level == 0
            else helper.make_node("If", ["on"], [name], then_branch=branch(level - 1, f"{name}t"),
                                  else_branch=branch(0, f"{name}e"))
        )  # fmt: skip
        return helper.make_graph([inner], name, [], [helper.make_tensor_value_info(name, 1, [4, 3])])

    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
               numpy_helper.from_array(np.asarray(True), "on")]  # fmt: skip
    node = helper.make_node("If", ["on"], ["w2"], then_branch=branch(depth, "t"), else_branch=branch(0, "e"))
    return base(node, tensors=tensors, weight="w2")


def constant_of_shape(elements: int, *, constant_node: bool = False) -> Proto:
    shape = numpy_helper.from_array(np.asarray([elements], np.int64), "shape")
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
             helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
             helper.make_node("Add", ["w", "sum"], ["w2"])]  # fmt: skip
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[elements]))
        return base(*nodes, tensors=[weight], weight="w2")
    return base(*nodes, tensors=[weight, shape], weight="w2")


def expanded(elements: int) -> Proto:
    """A tensor of one value, expanded: no rule about one operator sees it, the limit of memory does."""
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
               numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
               numpy_helper.from_array(np.asarray([elements], np.int64), "shape")]  # fmt: skip
    return base(helper.make_node("Expand", ["zero", "shape"], ["zeros"]),
                helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
                helper.make_node("Add", ["w", "sum"], ["w2"]), tensors=tensors, weight="w2")  # fmt: skip


def with_dim(value: int) -> Proto:
    proto = base()
    proto.graph.initializer[0].dims[0] = value
    return proto


def with_input_dim(value: int) -> Proto:
    proto = base()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = value
    return proto


def without_data() -> Proto:
    proto = base()
    proto.graph.initializer[0].ClearField("raw_data")
    return proto


def with_type(kind: int) -> Proto:
    proto = base()
    proto.graph.initializer[0].data_type = kind
    return proto


def untyped_attribute() -> Proto:
    proto = base(helper.make_node("Transpose", ["w0"], ["w"], perm=[1, 0]))
    proto.graph.initializer[0].name = "w0"
    proto.graph.node[0].attribute[0].ClearField("type")
    return proto


def without_inputs() -> Proto:
    proto = base(helper.make_node("Relu", ["w"], ["w2"]), weight="w2")
    del proto.graph.node[0].input[:]
    return proto


def without_outputs() -> Proto:
    proto = base(helper.make_node("Relu", ["w"], ["w2"]))
    del proto.graph.node[0].output[:]
    return proto


def dequantize_without_scale() -> Proto:
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.int8), "w")]
    return base(helper.make_node("DequantizeLinear", ["w"], ["w2"]), tensors=tensors, weight="w2")


def axis_that_is_a_list() -> Proto:
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.int8), "w"),
               numpy_helper.from_array(np.ones(3, np.float32), "s")]  # fmt: skip
    return base(helper.make_node("DequantizeLinear", ["w", "s"], ["w2"], axis=[1]), tensors=tensors, weight="w2")


def with_opset(version: int) -> Proto:
    proto = base()
    proto.opset_import[0].version = version
    return proto


def not_utf8() -> bytes:
    return (
        base(helper.make_node("Relu", ["w"], ["WXYZ"]), weight="WXYZ")
        .SerializeToString()
        .replace(b"WXYZ", b"\xff\xfeYZ")
    )


def outside() -> TensorProto:
    tensor = TensorProto(name="w", data_type=1, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def outside_in_constant() -> Proto:
    return base(helper.make_node("Constant", [], ["w"], value=outside()), tensors=[])


def outside_in_subgraph() -> Proto:
    proto = nested_if(0)
    graph = proto.graph.node[0].attribute[0].g
    graph.initializer.append(outside())
    return proto


def outside_in_function() -> Proto:
    proto = functions_nested(1, 2)
    proto.functions[0].node.append(helper.make_node("Constant", [], ["d"], value=outside()))
    return proto


def in_a_circle() -> Proto:
    return base(helper.make_node("Transpose", ["b"], ["a"]), helper.make_node("Transpose", ["a"], ["b"]), weight="a")


def dead_nodes(count: int) -> Proto:
    return base(*(helper.make_node("Relu", ["w"], [f"dead{i}"]) for i in range(count)))


def cast_without_type() -> Proto:
    return base(helper.make_node("Cast", ["w"], ["w2"]), weight="w2")


def attribute_of_no_kind() -> Proto:
    proto = untyped_attribute()
    proto.graph.node[0].attribute[0].type = AttributeProto.TENSOR
    return proto


# Name of the file, what is wrong with it, what makes it.
DEFECTS: dict[str, tuple[str, Callable[[], Proto | bytes]]] = {
    "functions-8-to-the-9th": ("functions nested nine deep, each called eight times", lambda: functions_nested(9, 8)),
    "functions-40-deep": ("functions nested 40 deep", lambda: functions_nested(40, 1)),
    "function-calls-itself": ("a recursive function", function_of_itself),
    "loop-2-to-the-40th": ("a Loop of 2^40 turns before a weight", lambda: loop(2**40)),
    "loop-endless": ("a Loop that never ends before a weight", endless_loop),
    "if-17-nested": ("17 nested If", lambda: nested_if(17)),
    "constant-of-shape-2-to-the-31st": ("ConstantOfShape of 2^31 elements", lambda: constant_of_shape(2**31)),
    "constant-of-shape-2-to-the-40th": ("the same of 2^40, its shape a Constant node",
                                        lambda: constant_of_shape(2**40, constant_node=True)),
    "expand-2-to-the-40th": ("one value expanded to 2^40", lambda: expanded(2**40)),
    "dimension-2-to-the-62nd": ("a tensor's dimension of 2^62", lambda: with_dim(2**62)),
    "dimension-minus-5": ("a tensor's dimension of -5", lambda: with_dim(-5)),
    "input-dimension-2-to-the-62nd": ("an input's dimension of 2^62", lambda: with_input_dim(2**62)),
    "tensor-without-data": ("a tensor without values", without_data),
    "tensor-of-unknown-type": ("a tensor of the type 99", lambda: with_type(99)),
    "tensor-of-no-type": ("a tensor of the type 0", lambda: with_type(0)),
    "attribute-without-type": ("an attribute without a type", untyped_attribute),
    "attribute-without-value": ("an attribute of another type than its value", attribute_of_no_kind),
    "node-without-inputs": ("an operator without inputs", without_inputs),
    "node-without-outputs": ("an operator without outputs", without_outputs),
    "dequantize-without-scale": ("DequantizeLinear without a scale", dequantize_without_scale),
    "axis-that-is-a-list": ("an axis that is a list of numbers", axis_that_is_a_list),
    "cast-without-type": ("a Cast that does not say to what", cast_without_type),
    "opset-2-to-the-62nd": ("an operator set of version 2^62", lambda: with_opset(2**62)),
    "name-not-utf8": ("a name that is not UTF-8", not_utf8),
    "outside-in-constant": ("external data in a Constant node", outside_in_constant),
    "outside-in-subgraph": ("external data in a subgraph", outside_in_subgraph),
    "outside-in-function": ("external data in a function's body", outside_in_function),
    "nodes-in-a-circle": ("two nodes that read each other", in_a_circle),
}  # fmt: skip


# Files of other kinds, kept as they were found, by their whole name.
OTHERS: dict[str, str] = {
    "sensitivity-of-different-planes.json": "layers rounded to different numbers of planes: the page's picture",
    "log-with-half-a-character.jsonl": "text that is not UTF-8 in a key that nothing reads",
    "sensitivity-without-layers.json": "no layer at all: the page's picture",
    "blame-without-parts.json": "no part at all: the page's picture",
    "checkpoint-with-a-tensor-of-other-arguments.pt": "a pickle that builds a tensor from a number as its size",
}
# Where defects of other kinds are kept: made by the tests, a name for each.
ELSEWHERE: dict[str, str] = {
    "tests/support/csq_bad_streams.py": "rows and streams of `.csq` files, given to all three readers",
    "tests/csq/test_damage.py": "preambles, parts, names and versions of `.csq` files",
    "tests/csq/test_metadata.py": "metadata of `.csq` files",
    "tests/csq/test_limits.py": "`.csq` files that would take too much time or memory",
    "tests/cli/test_malformed_documents.py": "JSON, logs and TOML",
    "tests/cli/test_hostile_texts.py": "texts that steer terminals and CI systems",
    "tests/data/test_python_pickle.py": "pickled batches of CIFAR",
    "tests/support/fooling_edits.py": "ONNX files that compute something else",
}


def content(name: str) -> bytes:
    """Return the bytes of a file."""
    made = DEFECTS[name][1]()
    return made if isinstance(made, bytes) else made.SerializeToString(deterministic=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    lines = ["# Files with a defect each", "",
             "ONNX files that once ended a command with a crash, a hang or all memory, or would have. Every command",
             "that reads ONNX ends with one line on each, in seconds. Written by",
             "`python -m tests.support.golden_bad`.", "",
             "| file | defect |", "| --- | --- |"]  # fmt: skip
    for name, (defect, _) in DEFECTS.items():
        (FOLDER / f"{name}.onnx").write_bytes(content(name))
        lines.append(f"| `{name}.onnx` | {defect} |")
    lines += ["", "Files of other kinds, kept as they were found:", "", "| file | defect |", "| --- | --- |"]
    lines += [f"| `{name}` | {defect} |" for name, defect in OTHERS.items()]
    lines += ["", "Defects that tests make, a name for each:", "", "| where | of what |", "| --- | --- |"]
    lines += [f"| `{place}` | {what} |" for place, what in ELSEWHERE.items()]
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
