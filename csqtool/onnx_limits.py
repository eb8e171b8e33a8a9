"""What an ONNX file may hold before anything computes with it: limits, each with its reason, and plain mistakes.

onnx's parser takes whatever is protobuf, and its checker is C++ that recurses and multiplies what a file tells it to.
So every message of a file is looked at here first, in time that grows with the file's size alone: subgraphs, function
bodies and training graphs like the graph itself. Behind `check_limits`, code may rely on this:

- all names are texts, and every node has an output, and the inputs and attributes that its operator requires;
- nodes are in order: nothing reads what is made later, and nothing is made twice in a graph;
- every tensor holds its own values, as many as its dimensions say, of a type that is known;
- functions do not call themselves, and a graph without them has at most `MAX_NODES` nodes.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from csqtool.errors import FormatError
from csqtool.onnx_schemas import STANDARD, schema_problem

if TYPE_CHECKING:
    import onnx

MAX_NODES = 200_000  # functions inlined: a network of 2,000 layers with packed weights has 40,000
MAX_DEAD_NODES = 1000  # that no output needs: loading takes quadratic time in them
MAX_FUNCTIONS = 10_000  # of a file; one a layer would do
MAX_CALL_DEPTH = 16  # of functions in functions: exporters nest two; each level can multiply the nodes
MAX_DEPTH = 4  # of subgraphs in subgraphs: onnxruntime takes exponential time on nested If
MAX_RANK = 32  # axes that every numpy has
MAX_AXIS = 2**31 - 1  # of a declared shape: products of a few of them still fit 64 bits in no runtime
MAX_ELEMENTS = 2**28  # that a file names instead of holding them: 1 GiB in float32
MAX_ITERATIONS = 2**20  # of a Loop whose number of turns is a constant
MAX_VERSION = 1000  # of operator sets and of the format itself; now they are below 30

_STRING, _MESSAGE = 9, 11  # protobuf's field types
_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


class _Problem(Exception):
    """What is wrong with a file."""


def check_limits(proto: onnx.ModelProto, *, where: str) -> None:
    """Check an ONNX file before anything else reads it.

    Args:
        proto: the file's message.
        where: the file's name, for messages.

    Raises:
        FormatError: it holds what no file may; says what and where in it.
    """
    try:
        _check_texts(proto)
        _File(proto).check()
    except _Problem as problem:
        raise FormatError(f"{where} is not an ONNX file that can be used: {problem}") from problem


def _check_texts(message: Any) -> None:
    """Check that every text is one; protobuf gives bytes in the place of those that are not UTF-8."""
    for field, value in message.ListFields():
        if field.type not in (_STRING, _MESSAGE):
            continue
        for item in value if field.is_repeated else (value,):
            if field.type == _MESSAGE:
                _check_texts(item)
            elif not isinstance(item, str):
                raise _Problem(f"a {field.name} of its {message.DESCRIPTOR.name} is not UTF-8: {item!r:.60}")


_Known = ChainMap[str, "onnx.TensorProto | None"]


@dataclass(frozen=True)
class _Body:
    """The nodes of a graph or function, and what is known in it.

    Attributes:
        called: how it is named in messages.
        nodes: its nodes.
        known: values that its nodes may read before any of them has made something; constants with what they hold.
        versions: of the operator sets, by domain.
        depth: how many graphs it is in.
    """

    called: str
    nodes: Iterable[onnx.NodeProto]
    known: _Known
    versions: Mapping[str, int]
    depth: int = 0


class _File:
    """The checks of one file."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._functions: dict[tuple[str, str, str], onnx.FunctionProto] = {}
        self._nodes = 0
        self._outside: list[str] = []  # tensors in files beside the ONNX file

    def check(self) -> None:
        proto = self._proto
        if not 1 <= proto.ir_version <= MAX_VERSION:
            raise _Problem(f"its format has the version {proto.ir_version}")
        if len(proto.functions) > MAX_FUNCTIONS:
            raise _Problem(f"it has {len(proto.functions)} functions, at most {MAX_FUNCTIONS} are read")
        versions = _versions(proto.opset_import)
        for function in proto.functions:
            key = (function.domain, function.name, function.overload)
            if key in self._functions:
                raise _Problem(f"it has two functions {function.name!r}")
            self._functions[key] = function
        graphs = [proto.graph, *(g for info in proto.training_info for g in (info.initialization, info.algorithm))]
        for graph in graphs:
            self._check_graph(graph, ChainMap(), versions, 0, "the graph")
        for function in proto.functions:
            own = {**versions, **_versions(function.opset_import)}
            called = f"the function {function.name!r}"
            for attribute in function.attribute_proto:
                self._check_attribute(attribute, called, ChainMap(), own, 0)
            self._check_body(_Body(called, function.node, ChainMap(dict.fromkeys(function.input)), own))
        if self._outside:
            raise _Problem(
                f"it keeps {len(self._outside)} tensors, {self._outside[0]!r} first, in files beside it; save it as "
                "one file (onnx.save without external data): what is checked must be what is shipped"
            )
        if (dead := _dead_nodes(proto.graph)) > MAX_DEAD_NODES:
            raise _Problem(f"it has {dead} nodes that no output needs, at most {MAX_DEAD_NODES} are read")
        self._check_growth(graphs)

    def _check_graph(
        self, graph: onnx.GraphProto, outer: _Known, versions: Mapping[str, int], depth: int, called: str
    ) -> None:
        if depth > MAX_DEPTH:
            raise _Problem(f"graphs are nested more than {MAX_DEPTH} deep")
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_type(value.type, value.name)
        known = outer.new_child(dict.fromkeys(value.name for value in graph.input))
        for tensor in graph.initializer:
            self._check_tensor(tensor, tensor.name)
            known[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            self._check_sparse(sparse, sparse.values.name)
            known[sparse.values.name] = None
        self._check_body(_Body(called, graph.node, known, versions, depth))

    def _check_body(self, body: _Body) -> None:
        known, made = body.known, set()
        for node in body.nodes:
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise _Problem(f"it has more than {MAX_NODES} nodes")
            what = f"{node.op_type or 'a node without operator'} in {body.called}"
            if not any(node.output):
                raise _Problem(f"{what} has no output")
            for name in node.input:
                if name and name not in known:
                    raise _Problem(f"{what} reads {name!r}, which nothing before it makes")
            for attribute in node.attribute:
                self._check_attribute(attribute, what, known, body.versions, body.depth)
            if problem := schema_problem(node, body.versions):
                raise _Problem(f"{what} {problem}")
            _check_size(node, known, what)
            for name in filter(None, node.output):
                if name in made:
                    raise _Problem(f"two nodes in {body.called} make {name!r}")
                made.add(name)
                known[name] = _constant(node)

    def _check_attribute(
        self, attribute: onnx.AttributeProto, what: str, known: _Known, versions: Mapping[str, int], depth: int
    ) -> None:
        field = _attribute_field(attribute.type)
        if field is None:
            raise _Problem(f"the attribute {attribute.name!r} of {what} has no type")
        if attribute.ref_attr_name:
            return
        if field in ("t", "g", "tp", "sparse_tensor") and not attribute.HasField(field):
            raise _Problem(f"the attribute {attribute.name!r} of {what} has no value")
        # Whatever its type says: code may look at any field.
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            self._check_graph(graph, known, versions, depth + 1, f"a graph of {what}")
        name = f"{attribute.name} of {what}"
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            self._check_tensor(tensor, name)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for item in (*sparse, *attribute.sparse_tensors):
            self._check_sparse(item, name)
        for kind in (*([attribute.tp] if attribute.HasField("tp") else []), *attribute.type_protos):
            _check_type(kind, name)

    def _check_sparse(self, sparse: onnx.SparseTensorProto, name: str) -> None:
        _elements(sparse.dims, name, MAX_ELEMENTS)
        self._check_tensor(sparse.values, name)
        self._check_tensor(sparse.indices, name)

    def _check_tensor(self, tensor: onnx.TensorProto, name: str) -> None:
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            self._outside.append(tensor.name or name)
            return
        storage = _storage(tensor.data_type)
        if storage is None:
            raise _Problem(f"the tensor {name!r} has the unknown type {tensor.data_type}")
        if tensor.HasField("segment"):
            raise _Problem(f"the tensor {name!r} is a segment of another")
        field, bits, fields_each = storage
        count = _elements(tensor.dims, name, 2**62)
        if tensor.HasField("raw_data"):
            found, allowed = len(tensor.raw_data), {-(-count * bits // 8)}
            if field == "string_data":
                raise _Problem(f"the tensor {name!r} holds texts as raw bytes")
        else:
            found, allowed = len(getattr(tensor, field)), {count * fields_each}
            if bits < 8:  # several values may be in one of these fields
                allowed.add(-(-count * bits // 8))
        if found not in allowed:
            raise _Problem(f"the tensor {name!r} has the shape {list(tensor.dims)}, which its data do not fill")

    def _check_growth(self, graphs: Iterable[onnx.GraphProto]) -> None:
        """Check that functions do not call themselves, and how many nodes there are without them."""
        sizes: dict[tuple[str, str, str], int] = {}

        def size(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
            total = 0
            for node in nodes:
                key = (node.domain, node.op_type, node.overload)
                if key in self._functions:
                    if depth >= MAX_CALL_DEPTH:
                        raise _Problem(f"functions call functions more than {MAX_CALL_DEPTH} deep, or themselves")
                    if key not in sizes:
                        sizes[key] = size(self._functions[key].node, depth + 1)
                    total += sizes[key]
                else:
                    total += 1
                total += sum(size(graph.node, depth) for graph in _subgraphs(node))
                if total > MAX_NODES:
                    raise _Problem(f"without its functions it has more than {MAX_NODES} nodes")
            return total

        for function in self._functions.values():
            size(function.node, 1)
        if sum(size(graph.node, 0) for graph in graphs) > MAX_NODES:
            raise _Problem(f"without its functions it has more than {MAX_NODES} nodes")


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the integers that a Constant makes."""
    if node.op_type != "Constant" or not node.attribute:
        return None
    import onnx

    given = node.attribute[0]
    if given.name == "value" and given.HasField("t"):
        return given.t
    numbers = list(given.ints) if given.name == "value_ints" else [given.i] if given.name == "value_int" else None
    kind = onnx.TensorProto.INT64
    return None if numbers is None else onnx.TensorProto(data_type=kind, dims=[len(numbers)], int64_data=numbers)


def _check_size(node: onnx.NodeProto, known: _Known, what: str) -> None:
    """Check what a constant makes a node do, where a file could name any number for a few bytes."""
    most = {"ConstantOfShape": MAX_ELEMENTS, "Loop": MAX_ITERATIONS}.get(node.op_type)
    if most is None or node.domain not in STANDARD or not node.input:
        return
    tensor = known.get(node.input[0])
    if tensor is None or tensor.data_type != tensor.INT64 or prod(tensor.dims) > MAX_RANK:
        return
    import onnx

    numbers = [int(n) for n in onnx.numpy_helper.to_array(tensor).ravel()]
    if min(numbers, default=0) < 0 or prod(numbers) > most:
        does = "makes a tensor of the shape" if node.op_type == "ConstantOfShape" else "runs this many times:"
        raise _Problem(f"{what} {does} {numbers}, at most {most} elements or turns are allowed")


def _dead_nodes(graph: onnx.GraphProto) -> int:
    """Return how many nodes of a graph, which is in order, no output needs."""
    needed = {value.name for value in graph.output}
    dead = 0
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            dead += 1
        else:
            needed.update(_names_read(node))
    return dead


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _names_read(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    for item in imports:
        if not 1 <= item.version <= MAX_VERSION:
            raise _Problem(f"it needs version {item.version} of the operators {item.domain or 'ai.onnx'!r}")
    return {item.domain: item.version for item in imports}


def _check_type(kind: onnx.TypeProto, name: str) -> None:
    """Check the shapes of a value's type, and of the types in it."""
    for part in ("tensor_type", "sparse_tensor_type"):
        if kind.HasField(part):
            shape = getattr(kind, part).shape
            _elements([d.dim_value for d in shape.dim if d.HasField("dim_value")], name, 2**62, MAX_AXIS)
            if len(shape.dim) > MAX_RANK:
                raise _Problem(f"{name!r} has {len(shape.dim)} axes, at most {MAX_RANK} are allowed")
    for part in ("sequence_type", "optional_type"):
        if kind.HasField(part):
            _check_type(getattr(kind, part).elem_type, name)
    if kind.HasField("map_type"):
        _check_type(kind.map_type.value_type, name)


def _elements(dims: Iterable[int], name: str, most: int, most_each: int = 2**62) -> int:
    """Return how many elements a shape has."""
    axes = list(dims)
    if len(axes) > MAX_RANK:
        raise _Problem(f"{name!r} has {len(axes)} axes, at most {MAX_RANK} are allowed")
    if min(axes, default=0) < 0 or max(axes, default=0) > most_each or (count := prod(axes)) > most:
        raise _Problem(f"{name!r} has the shape {axes}, which nothing can have")
    return count


@functools.cache
def _storage(data_type: int) -> tuple[str, int, int] | None:
    """Return the field that holds a type's values, bits of a value in raw bytes, and entries of the field a value."""
    import onnx

    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    if data_type not in names or data_type == onnx.TensorProto.UNDEFINED:
        return None
    field = str(onnx.helper.tensor_dtype_to_field(data_type))
    if field == "string_data":
        return field, 8, 1
    bits = _BITS.get(names[data_type], 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    return field, bits, 2 if names[data_type].startswith("COMPLEX") else 1


@functools.cache
def _attribute_field(kind: int) -> str | None:
    """Return the field that holds an attribute of a type."""
    import onnx

    fields = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "SPARSE_TENSOR": "sparse_tensor",
              "TYPE_PROTO": "tp", "FLOATS": "floats", "INTS": "ints", "STRINGS": "strings", "TENSORS": "tensors",
              "GRAPHS": "graphs", "SPARSE_TENSORS": "sparse_tensors", "TYPE_PROTOS": "type_protos"}  # fmt: skip
    names = {number: name for name, number in onnx.AttributeProto.AttributeType.items()}
    return fields.get(names.get(kind, ""))
