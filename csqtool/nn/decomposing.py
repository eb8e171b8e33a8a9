"""Torch's decomposition of a captured program, done node by node where that gives the same graph.

Between `torch.export` and the translation to ONNX, torch decomposes the operators for which it has no translation. It
does so by tracing the whole program a second time, which takes longer than everything else of a capture together. Of a
usual network all but a few operators come out of that as they went in, and what becomes of those few is known: a
BatchNorm in evaluation mode gets its functional name, an operation in place that of its counterpart, a flattening
becomes a view. Only these nodes are changed here. A program with any other operator is decomposed by torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx

aten = torch.ops.aten
Change = Callable[[], None]
# What torch's decomposition for ONNX leaves as it is.
KEPT = {
    *(
        f"aten.{name}"
        for name in (
            "abs.default", "add.Tensor", "avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default",
            "bmm.default", "cat.default", "clamp.default", "clamp_min.default", "clone.default", "contiguous.default",
            "conv1d.default", "conv2d.default", "conv3d.default", "cos.default", "div.Tensor", "elu.default",
            "embedding.default", "exp.default", "expand.default", "gelu.default", "glu.default", "group_norm.default",
            "hardsigmoid.default", "hardswish.default", "hardtanh.default", "layer_norm.default",
            "leaky_relu.default", "linear.default", "log.default", "log_softmax.int", "matmul.default",
            "max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "mean.default", "mean.dim",
            "mul.Tensor", "neg.default", "permute.default", "pixel_shuffle.default", "pow.Tensor_Scalar",
            "prelu.default", "relu.default", "relu6.default", "rsqrt.default", "scaled_dot_product_attention.default",
            "select.int", "sigmoid.default", "silu.default", "sin.default", "slice.Tensor", "softmax.int",
            "softplus.default", "split.Tensor", "split_with_sizes.default", "sqrt.default", "squeeze.dim",
            "stack.default", "sub.Tensor", "sum.dim_IntList", "sym_size.int", "tanh.default", "transpose.int",
            "unbind.int", "unsqueeze.default", "view.default"
        )
    ),
    "onnx_symbolic._symbolic.default",
}  # fmt: skip
KEPT_FUNCTIONS = (operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv)
# Results that share no memory with anything else, so that nothing else sees what is done to them in place.
FRESH = {
    *(
        f"aten.{name}"
        for name in (
            "add.Tensor", "batch_norm.default", "cat.default", "conv1d.default", "conv2d.default", "conv3d.default",
            "group_norm.default", "layer_norm.default", "linear.default", "mul.Tensor", "sub.Tensor"
        )
    ),
    "onnx_symbolic._symbolic.default",
}  # fmt: skip
IN_PLACE = {  # the operation in place to its counterpart
    f"aten.{name}_.{overload}": f"aten.{name}.{overload}"
    for name, overload in (
        ("add", "Tensor"), ("elu", "default"), ("hardsigmoid", "default"), ("hardswish", "default"),
        ("hardtanh", "default"), ("leaky_relu", "default"), ("mul", "Tensor"), ("relu", "default"),
        ("relu6", "default"), ("sigmoid", "default"), ("silu", "default"), ("sub", "Tensor"), ("tanh", "default"),
    )
}  # fmt: skip


@contextmanager
def decomposed_by_node() -> Iterator[None]:
    """Within the block, `ExportedProgram.run_decompositions` changes single nodes where that is enough.

    A torch that decomposes by another way than this public method is not affected.
    """
    original = torch.export.ExportedProgram.run_decompositions

    def run_decompositions(program: Any, *args: Any, **kwargs: Any) -> Any:
        table = args[0] if args else kwargs.get("decomp_table")
        if isinstance(table, Mapping) and decomposed(program.graph_module, table):
            return program
        return original(program, *args, **kwargs)

    with mock.patch.object(torch.export.ExportedProgram, "run_decompositions", run_decompositions):
        yield


def decomposed(module: fx.GraphModule, table: Container[Any]) -> bool:
    """Decompose a program in place, node by node, or leave it as it is and return False.

    Args:
        module: the program's graph, as `torch.export.export` returns it.
        table: the operators that must not remain.
    """
    if any(part is not module for part in module.modules()):
        return False  # a part of the network that runs under a condition, or several times
    changes = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            if node.op not in ("placeholder", "output"):
                return False
            continue
        if node.target in KEPT_FUNCTIONS or (str(node.target) in KEPT and node.target not in table):
            continue
        change = _change(node)
        if change is None:
            return False
        changes.append(change)
    for change in changes:
        change()
    return True


def _change(node: fx.Node) -> Change | None:
    """Return what does torch's decomposition of one node, None if that is not known here."""
    name = str(node.target)
    if name in IN_PLACE:
        return _out_of_place(node)
    rule = RULES.get(name)
    return rule(node) if rule is not None and not node.kwargs else None


def _replace(node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    if any(user.op == "output" for user in node.users):  # the program's signature knows its outputs by their names
        node.target, node.args, node.kwargs = target, args, kwargs or {}
        return
    with node.graph.inserting_before(node):
        # Named after the operator that it is, as torch does.
        name = target.__name__.partition(".")[0]
        other = node.graph.create_node("call_function", target, args, kwargs, name)
    other.meta = node.meta
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _out_of_place(node: fx.Node) -> Change | None:
    """An operation in place on a result that nothing else reads is the same as one that returns a new result."""
    values = [node, *node.all_input_nodes]
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or len(changed.users) > 1 or node.kwargs.keys() - {"alpha"}:
        return None
    if str(changed.target) not in FRESH and str(changed.target) not in IN_PLACE:
        return None
    if len({value.meta["val"].dtype for value in values}) > 1:
        return None  # in place, a result keeps its type
    target = aten
    for part in IN_PLACE[str(node.target)].split(".")[1:]:
        target = getattr(target, part)
    return lambda: _replace(node, target, node.args, dict(node.kwargs))


def _batch_norm(node: fx.Node) -> Change | None:
    """BatchNorm with running statistics is the first result of its functional form."""
    training = node.args[5]
    if training or None in node.args[3:5]:
        return None
    target = aten._native_batch_norm_legit_no_training.default

    def change() -> None:
        args = (*node.args[:5], *node.args[6:8])
        with node.graph.inserting_before(node):
            results = node.graph.call_function(target, args)
        output = node.meta["val"]
        results.meta = node.meta | {"val": (output, output.new_empty((0,)), output.new_empty((0,)))}
        _replace(node, operator.getitem, (results, 0))

    return change


def _global_average(node: fx.Node) -> Change | None:
    """An average of everything is a mean over the last two axes."""
    if node.args[1] not in (1, [1, 1]):
        return None
    return lambda: _replace(node, aten.mean.dim, (node.args[0], [-1, -2], True))


def _flatten(node: fx.Node) -> Change | None:
    """A flattening is a view of the shape that it results in, except of a value whose memory has another order."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    shape = node.meta["val"].shape
    if len(shape) == len(value.meta["val"].shape) or not value.meta["val"].is_contiguous():
        return None  # nothing to flatten, or torch copies it first
    places = {}
    for size in shape:
        if not isinstance(size, int):
            place = _axis_of_size(node.graph, size)
            if place is None:
                return None
            places[str(size)] = place

    def change() -> None:
        sizes = [size if isinstance(size, int) else _size_node(node, *places[str(size)], size) for size in shape]
        _replace(node, aten.view.default, (node.args[0], sizes))

    return change


def _axis_of_size(graph: fx.Graph, size: Any) -> tuple[fx.Node, int] | None:
    """Return the first input, and the axis of it, that has a dynamic size."""
    for node in graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ()) if node.op == "placeholder" else ()
        for axis, other in enumerate(shape):
            if not isinstance(other, int) and str(other) == str(size):
                return node, axis
    return None


def _size_node(node: fx.Node, source: fx.Node, axis: int, size: Any) -> fx.Node:
    for other in source.users:
        if other.target == aten.sym_size.int and other.args == (source, axis) and other < node:
            return other
    with node.graph.inserting_before(node):
        result = node.graph.call_function(aten.sym_size.int, (source, axis))
    result.meta = node.meta | {"val": size}
    return result


def _reshape(node: fx.Node) -> Change | None:
    """A reshape is a view, except of a value whose memory has another order: torch copies some of these first."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    if not value.meta["val"].is_contiguous():
        return None
    return lambda: _replace(node, aten.view.default, node.args)


def _dropout(node: fx.Node) -> Change | None:
    """A dropout in evaluation mode is a copy."""
    return None if node.args[2] else lambda: _replace(node, aten.clone.default, (node.args[0],))


RULES: dict[str, Callable[[fx.Node], Change | None]] = {
    "aten.adaptive_avg_pool2d.default": _global_average,
    "aten.batch_norm.default": _batch_norm,
    "aten.dropout.default": _dropout,
    "aten.dropout_.default": _dropout,
    "aten.flatten.using_ints": _flatten,
    "aten.reshape.default": _reshape,
}
