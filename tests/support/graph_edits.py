"""Random edits of an ONNX file: what a bad merge, a bug of an optimizer or a fuzzer makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

Proto = onnx.ModelProto
HUGE = [0, -1, -5, 1, 2, 3, 7, 64, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
TYPES = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 21, 22, 25, 26, 99, 1000]
NAMES = ["", "input", "output", "x", "\x1b[31m", "\u202e", "::error::x", "a" * 5000]


def edited(content: bytes, seed: int) -> tuple[bytes, list[str]]:
    """Return a file with one to three edits, and what they are."""
    rng = random.Random(seed)
    proto = onnx.load_from_string(content)
    done: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        edit = rng.choice(EDITS)
        edit(proto, rng)
        done.append(edit.__name__)
    result = proto.SerializeToString()
    if rng.random() < 0.05:  # bytes in the place of a name's text
        names = [n.output[0].encode() for n in proto.graph.node if n.output and len(n.output[0]) > 3]
        if names:
            name = rng.choice(names)
            result = result.replace(name, b"\xff\xfe" + name[2:])
            done.append("not_utf8")
    return result, done


def _node(proto: Proto, rng: random.Random) -> onnx.NodeProto:
    functions = [f for f in proto.functions if f.node]
    if functions and rng.random() < 0.25:
        return rng.choice(rng.choice(functions).node)
    return rng.choice(proto.graph.node) if proto.graph.node else proto.graph.node.add()


def _tensors(proto: Proto) -> Iterator[TensorProto]:
    yield from proto.graph.initializer
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _names(proto: Proto) -> list[str]:
    return [*(o for n in proto.graph.node for o in n.output), *(t.name for t in proto.graph.initializer), "input", ""]


def delete_node(proto: Proto, rng: random.Random) -> None:
    if proto.graph.node:
        del proto.graph.node[rng.randrange(len(proto.graph.node))]


def duplicate_node(proto: Proto, rng: random.Random) -> None:
    copy = proto.graph.node.add()
    copy.CopyFrom(_node(proto, rng))
    if rng.random() < 0.5 and copy.output:
        copy.output[0] += "_again"


def swap_nodes(proto: Proto, rng: random.Random) -> None:
    nodes = list(proto.graph.node)
    if nodes:
        moved = nodes.pop(rng.randrange(len(nodes)))
        nodes.insert(rng.randrange(len(nodes) + 1), moved)
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)


def rewire(proto: Proto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names(proto))


def drop_input(proto: Proto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if node.input:
        del node.input[rng.randrange(len(node.input)) :]


def add_input(proto: Proto, rng: random.Random) -> None:
    _node(proto, rng).input.append(rng.choice(_names(proto)))


def drop_outputs(proto: Proto, rng: random.Random) -> None:
    del _node(proto, rng).output[:]


def rename(proto: Proto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if node.output:
        node.output[0] = rng.choice(NAMES)


def change_operator(proto: Proto, rng: random.Random) -> None:
    node, other = _node(proto, rng), _node(proto, rng)
    node.op_type = rng.choice([other.op_type, "Relu", "Neg", "Loop", "If", "NoSuchOperator", "", *NAMES])
    if rng.random() < 0.2:
        node.domain = rng.choice(["", "com.microsoft", "csqtool", *NAMES])


def change_attribute(proto: Proto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    what = rng.randrange(6)
    if what == 0:
        attribute.ClearField("type")
    elif what == 1:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif what == 2:
        attribute.i = rng.choice(HUGE)
        attribute.f = rng.choice([0.0, -1.0, 1e38, float("nan"), float("inf")])
    elif what == 3 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(HUGE)
    elif what == 4:
        attribute.name = rng.choice(["to", "axis", "perm", "value", *NAMES])
    else:
        node.attribute.remove(attribute)


def change_dims(proto: Proto, rng: random.Random) -> None:
    tensors = list(_tensors(proto))
    if tensors:
        tensor = rng.choice(tensors)
        if tensor.dims and rng.random() < 0.7:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
        else:
            tensor.dims.append(rng.choice(HUGE))


def change_type(proto: Proto, rng: random.Random) -> None:
    tensors = list(_tensors(proto))
    if tensors:
        rng.choice(tensors).data_type = rng.choice(TYPES)


def drop_data(proto: Proto, rng: random.Random) -> None:
    tensors = list(_tensors(proto))
    if tensors:
        rng.choice(tensors).ClearField("raw_data")


def change_data(proto: Proto, rng: random.Random) -> None:
    tensors = [t for t in _tensors(proto) if t.raw_data]
    if tensors:
        tensor = rng.choice(tensors)
        raw = bytearray(tensor.raw_data)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        tensor.raw_data = bytes(raw)


def drop_initializer(proto: Proto, rng: random.Random) -> None:
    if proto.graph.initializer:
        del proto.graph.initializer[rng.randrange(len(proto.graph.initializer))]


def outside(proto: Proto, rng: random.Random) -> None:
    tensors = list(_tensors(proto))
    if tensors:
        tensor = rng.choice(tensors)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")


def change_value(proto: Proto, rng: random.Random) -> None:
    value = rng.choice([*proto.graph.input, *proto.graph.output])
    shape = value.type.tensor_type.shape
    what = rng.randrange(4)
    if what == 0 and shape.dim:
        shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice(HUGE)
    elif what == 1:
        value.type.tensor_type.elem_type = rng.choice(TYPES)
    elif what == 2:
        value.type.Clear()
    else:
        value.name = rng.choice(NAMES)


def change_opset(proto: Proto, rng: random.Random) -> None:
    imports = [*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)]
    if imports:
        rng.choice(imports).version = rng.choice([*range(1, 27), *HUGE])


def change_function(proto: Proto, rng: random.Random) -> None:
    if not proto.functions:
        return
    function = rng.choice(proto.functions)
    what = rng.randrange(5)
    if what == 0:
        function.node.add(op_type=function.name, domain=function.domain, output=["again"], input=list(function.input))
    elif what == 1:
        function.name = rng.choice(["Conv", *NAMES])
    elif what == 2:
        proto.functions.remove(function)
    elif what == 3:
        del function.node[rng.randrange(len(function.node)) :]
    elif function.input:
        del function.input[-1]


EDITS: list[Callable[[Proto, random.Random], Any]] = [
    delete_node, duplicate_node, swap_nodes, rewire, drop_input, add_input, drop_outputs, rename, change_operator,
    change_attribute, change_attribute, change_dims, change_type, drop_data, change_data, drop_initializer, outside,
    change_value, change_opset, change_function,
]  # fmt: skip
