"""Operators in float32 with windows, padding and repetition, and functions that others compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx

from exporters.c.float_steps import FloatStep, FloatValue
from exporters.c.graph import refusal
from exporters.c.rearranging import pads_of, surrounding
from exporters.c.values import Values
from exporters.c.windows import window_of

Combine = Callable[..., FloatValue]  # a kind of `unary` or `binary`, and one or two values or numbers
Formula = Callable[[Combine, list[FloatValue], Mapping[str, Any]], FloatValue]


def _added(values: Values, source: FloatValue, shape: tuple[int, ...], kernel: str, *arguments: Any) -> FloatValue:
    output = FloatValue(values.reserve(4 * prod(shape)), shape)
    values.steps.append(FloatStep((source,), output, kernel=kernel, arguments=[source, output, *arguments]))
    return output


def pool(values: Values, node: onnx.NodeProto, source: FloatValue) -> FloatValue:
    """Return the largest value or the mean of windows."""
    attributes = values.graph.attributes(node)
    shape = values.graph.shape(node, node.output[0])
    is_mean = node.op_type == "AveragePool"
    if is_mean and attributes.get("ceil_mode", 0):
        raise refusal(node, "windows that begin inside and end outside (ceil_mode) are not covered")
    window = window_of(node, attributes, attributes["kernel_shape"], source.shape[1:], shape[1:])
    whole = bool(attributes.get("count_include_pad", 0)) or not any(attributes.get("pads", [0]))
    output = FloatValue(values.reserve(4 * prod(shape)), shape)
    arguments = [window, source, output, int(is_mean), prod(window.kernel) if whole else 0]
    values.steps.append(FloatStep((source,), output, kernel="pool_floats", arguments=arguments))
    return output


def global_pool(values: Values, node: onnx.NodeProto, source: FloatValue) -> FloatValue:
    """Return the mean over all positions."""
    count = prod(source.shape[1:])
    return _added(values, source, values.graph.shape(node, node.output[0]), "mean", source.shape[0], count)


def upsampled(values: Values, node: onnx.NodeProto, source: FloatValue) -> FloatValue:
    """Return each value repeated along height and width, or values between, linear from center to center."""
    shape = values.graph.shape(node, node.output[0])
    factors = [b // a for a, b in zip(source.shape, shape, strict=True)]
    exact = all(a * f == b for a, b, f in zip(source.shape, shape, factors, strict=True))
    attributes = values.graph.attributes(node)
    mode, centers = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
    is_linear = mode == b"linear" and centers in (b"half_pixel", b"pytorch_half_pixel")
    if not (is_linear or mode == b"nearest") or not exact or factors[0] != 1 or len(shape) not in (2, 3):
        raise refusal(node, "only nearest and linear ones by whole factors, without aligned corners, are covered")
    kernel = "blend_floats" if is_linear else "repeat_floats"
    sizes, times = [1, *source.shape[1:]][-2:], [1, *factors[1:]][-2:]
    return _added(values, source, shape, kernel, source.shape[0], *sizes, *times)


def padded(values: Values, node: onnx.NodeProto, source: FloatValue) -> FloatValue:
    """Return a value with constant ones, or with parts of it, around it; negative padding cuts off."""
    graph, rank = values.graph, len(source.shape)
    fronts, shape = pads_of(node, graph, rank), graph.shape(node, node.output[0])
    if graph.attributes(node).get("mode", b"constant") != b"constant":
        sizes = list(zip(shape, fronts, source.shape, strict=True))
        return _added(values, source, shape, "surround", *surrounding(node, graph, sizes, 4))
    value = graph.number(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
    if value is None or rank > 4:
        raise refusal(node, "it pads with values that are computed, or has more than four axes beside the batch")
    rows = [(1, 0, 1, 1, 0)] * (4 - rank) + [
        (shape[axis], -fronts[axis], 1, source.shape[axis], prod(source.shape[axis + 1 :])) for axis in range(rank)
    ]
    return _added(values, source, shape, "pad_floats", np.array(rows, np.int32).reshape(-1), np.float32(value))


def _leaky(f: Combine, x: FloatValue, slope: FloatValue | float) -> FloatValue:
    return f("PLUS", f("RECTIFIED", x), f("TIMES", f("SMALLER", x, 0.0), slope))


def _elu(f: Combine, x: FloatValue, alpha: float) -> FloatValue:
    below = f("MINUS", f("EXPONENTIAL", f("SMALLER", x, 0.0)), 1.0)
    return f("PLUS", f("RECTIFIED", x), f("TIMES", below, alpha))


def _hard_sigmoid(f: Combine, x: FloatValue, alpha: float, beta: float) -> FloatValue:
    return f("SMALLER", f("LARGER", f("PLUS", f("TIMES", x, alpha), beta), 0.0), 1.0)


# From operands and attributes, in the order of docs/c-inference.md, section 5.2.
FORMULAS: Mapping[str, Formula] = {
    "Elu": lambda f, x, a: _elu(f, x[0], float(a.get("alpha", 1.0))),
    "HardSigmoid": lambda f, x, a: _hard_sigmoid(f, x[0], float(a.get("alpha", 0.2)), float(a.get("beta", 0.5))),
    "HardSwish": lambda f, x, a: f("TIMES", x[0], _hard_sigmoid(f, x[0], 1 / 6, 0.5)),
    "LeakyRelu": lambda f, x, a: _leaky(f, x[0], float(a.get("alpha", 0.01))),
    "Selu": lambda f, x, a: f(
        "TIMES", _elu(f, x[0], float(a.get("alpha", 1.6732631921768188))), float(a.get("gamma", 1.0507010221481323))
    ),
    "Mish": lambda f, x, a: f("TIMES", x[0], f("TANGENT", f("SOFTPLUS", x[0]))),
    "PRelu": lambda f, x, a: _leaky(f, x[0], x[1]),
}
WINDOWED: Mapping[str, Callable[[Values, onnx.NodeProto, FloatValue], FloatValue]] = {
    "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": global_pool, "Resize": upsampled, "Pad": padded,
}  # fmt: skip
