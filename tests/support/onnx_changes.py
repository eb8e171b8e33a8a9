"""Reading and changing what an ONNX file says, for tests that break one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Mutation = Callable[[onnx.ModelProto], None]


def array(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)).copy()


def put(proto: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    next(t for t in proto.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(values, name))


def node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if output in n.output)


def attribute(proto: onnx.ModelProto, output: str, name: str) -> onnx.AttributeProto:
    return next(a for a in node(proto, output).attribute if a.name == name)
