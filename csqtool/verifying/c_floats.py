"""Operators of the C inference in float32 (docs/c-inference.md, section 5.2): numpy, one rounding an operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csqtool.verifying.c_operators import windowed

Array = NDArray[np.float32]
_ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class Floats:
    """Values in float32 [N, …]."""

    x: Array


def evaluate(kind: str, inputs: list[Any], attributes: Mapping[str, Any], which: int = 0) -> Array:
    """Return what an operator computes.

    Args:
        kind: ONNX's operator.
        inputs: float32 arrays; axes as they are; None where one is left out.
        attributes: ONNX's.
        which: of the outputs.

    Raises:
        KeyError: it has no form in float.
        ValueError: this form of it has none.
    """
    if kind == "Split":
        axis = int(attributes.get("axis", 0))
        sizes = inputs[1].astype(int).tolist() if len(inputs) > 1 else [-1]
        return np.asarray(np.split(inputs[0], np.cumsum(sizes)[:-1], axis)[which])
    with np.errstate(all="ignore"):
        return np.asarray(OPERATORS[kind](inputs, attributes), np.float32)


def _exp(x: Array) -> Array:
    f = np.float32
    x = np.minimum(np.where(x > f(-87), x, f(-87)), f(88))
    k = np.trunc(x * f(1.44269504) + np.where(x < 0, f(-0.5), f(0.5)))
    r = x - k * f(0.693359375)
    r = r - k * f(-2.12194440e-4)
    y = np.full_like(r, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + f(c)
    y = y * r * r + r + _ONE
    return np.asarray(y * np.exp2(k.astype(np.float64)).astype(np.float32), np.float32)


def _with_sign(x: Array, y: Array) -> Array:
    return np.where(x < 0, -y, y)


def _tanh(x: Array) -> Array:
    t = _exp(np.float32(-2) * np.abs(x))
    return _with_sign(x, (_ONE - t) / (_ONE + t))


def _softplus(x: Array) -> Array:
    f = np.float32
    t = _exp(-np.abs(x))
    s = t / (f(2) + t)
    square = s * s
    y = np.full_like(s, 7.6923077e-2)
    for c in (9.0909091e-2, 1.1111111e-1, 1.4285715e-1, 2.0e-1, 3.3333334e-1, 1.0):
        y = y * square + f(c)
    return np.asarray(_rectified(x) + f(2) * s * y)


def _power(x: Array, exponent: Any) -> Array:
    found = {2.0: x * x, 3.0: x * x * x}
    if np.size(exponent) != 1 or float(np.reshape(exponent, ())) not in found:
        raise ValueError("it is neither a square nor a cube")
    return found[float(np.reshape(exponent, ()))]


def _erf(x: Array) -> Array:
    f = np.float32
    size = np.abs(x)
    t = _ONE / (_ONE + f(0.3275911) * size)
    y = np.full_like(t, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y = y * t + f(c)
    return _with_sign(x, _ONE - y * t * _exp(-(x * x)))


def _total(x: Array) -> Array:
    """Sum over the last axis, in order."""
    sums = np.zeros(x.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        sums = sums + x[..., i]
    return sums


def _matmul(a: Array, b: Array) -> Array:
    sums = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        sums = sums + a[..., :, k, None] * b[..., None, k, :]
    return sums


def _softmax(x: Array) -> Array:
    powers = _exp(x - x.max(-1, keepdims=True))
    return powers / _total(powers)[..., None]


def _inverse_root(x: Array) -> Array:
    bits = np.uint32(0x5F3759DF) - (np.ascontiguousarray(x).view(np.uint32) >> np.uint32(1))
    y, half = bits.view(np.float32), np.float32(0.5) * x
    for _ in range(4):
        y = y * (np.float32(1.5) - half * y * y)
    return y


def _layer_norm(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros_like(weight)
    axis = int(attributes.get("axis", -1)) % x.ndim
    rows = x.reshape(*x.shape[:axis], -1)
    count = np.float32(rows.shape[-1])
    distance = rows - (_total(rows) / count)[..., None]
    factor = _inverse_root(_total(distance * distance) / count + np.float32(attributes.get("epsilon", 1e-5)))
    found: Array = distance * factor[..., None] * weight.reshape(-1) + bias.reshape(-1)
    return found.reshape(x.shape)


def _mean(x: Array, axes: Any, keepdims: bool) -> Array:
    reduced = sorted(int(axis) % x.ndim for axis in np.asarray(axes).reshape(-1))
    kept = [axis for axis in range(x.ndim) if axis not in reduced]
    rows = x.transpose(*kept, *reduced).reshape(*(x.shape[axis] for axis in kept), -1)
    found = _total(rows) / np.float32(rows.shape[-1])
    return np.expand_dims(found, tuple(reduced)) if keepdims else found


def _larger(x: Array, y: Any) -> Array:
    return np.where(x > y, x, y)


def _smaller(x: Array, y: Any) -> Array:
    return np.where(x < y, x, y)


def _clip(x: Array, low: Any, high: Any) -> Array:
    x = x if low is None else _larger(x, low)
    return x if high is None else _smaller(x, high)


def _rectified(x: Array) -> Array:
    return _larger(x, np.float32(0))


def _leaky(x: Array, slope: Any) -> Array:
    return np.asarray(_rectified(x) + _smaller(x, np.float32(0)) * np.asarray(slope, np.float32))


def _elu(x: Array, alpha: Any) -> Array:
    below = _exp(_smaller(x, np.float32(0))) - _ONE
    return np.asarray(_rectified(x) + below * np.float32(alpha))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return _clip(x * np.float32(alpha) + np.float32(beta), np.float32(0), _ONE)


def _selu(x: Array, a: Mapping[str, Any]) -> Array:
    gamma = np.float32(a.get("gamma", 1.0507010221481323))
    return np.asarray(_elu(x, a.get("alpha", 1.6732631921768188)) * gamma)


def _batch_norm(x: list[Any], epsilon: float) -> Array:
    gamma, beta, mean, variance = (one.astype(np.float64) for one in x[1:5])
    factor = gamma / np.sqrt(variance + epsilon)
    shape = [-1] + [1] * (x[0].ndim - 2)
    offset = (beta - mean * factor).astype(np.float32).reshape(shape)
    return np.asarray(x[0] * factor.astype(np.float32).reshape(shape) + offset)


def _mean_of_windows(x: Array, attributes: Mapping[str, Any]) -> Array:
    sums = _total(windowed(torch.from_numpy(np.ascontiguousarray(x)), attributes).numpy())
    if attributes.get("count_include_pad", 0) or not any(attributes.get("pads", [0])):
        return np.asarray(sums / np.float32(np.prod(attributes["kernel_shape"])))
    inside = windowed(torch.ones((1, 1, *x.shape[2:])), attributes).sum(-1).numpy()
    return np.asarray(sums / np.maximum(inside, _ONE))


def _blended(x: list[Any], attributes: Mapping[str, Any]) -> Array:
    """Values between values, linear from center to center, along the last axis first."""
    centers = attributes.get("coordinate_transformation_mode", b"half_pixel")
    given = [np.asarray(one) for one in x[1:] if one is not None and np.size(one) == x[0].ndim]
    if attributes["mode"] != b"linear" or centers not in (b"half_pixel", b"pytorch_half_pixel") or len(given) != 1:
        raise ValueError("it is not linear from center to center")
    found = x[0]
    is_size = len(x) > 3 and x[3] is not None
    for axis in reversed(range(2, found.ndim)):
        size = found.shape[axis]
        times = int(given[0][axis] / size if is_size else given[0][axis])
        halves = np.maximum(2 * np.arange(size * times) + 1 - times, 0)
        shape = [1] * found.ndim
        shape[axis] = -1
        share = (halves % (2 * times)).astype(np.float32).reshape(shape) / np.float32(2 * times)
        one = halves // (2 * times)
        found = found.take(one, axis) * (_ONE - share) + found.take(np.minimum(one + 1, size - 1), axis) * share
    return np.asarray(found)


def _gathered(x: Array, index: Any, axis: int) -> Array:
    if np.asarray(index).ndim:
        raise ValueError("it takes several places")
    return np.asarray(x.take(int(index), axis))


# From inputs and attributes. Axes that ONNX gives as an input come as float32, too.
OPERATORS: Mapping[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "Abs": lambda x, a: np.abs(x[0]),
    "Add": lambda x, a: x[0] + x[1],
    "AveragePool": lambda x, a: _mean_of_windows(x[0], a),
    "BatchNormalization": lambda x, a: _batch_norm(x, float(a.get("epsilon", 1e-5))),
    "Clip": lambda x, a: _clip(*[*x, None, None][:3]),
    "Concat": lambda x, a: np.concatenate(x, int(a["axis"])),
    "Div": lambda x, a: x[0] / x[1],
    "Elu": lambda x, a: _elu(x[0], a.get("alpha", 1.0)),
    "Erf": lambda x, a: _erf(x[0]),
    "Exp": lambda x, a: _exp(x[0]),
    "Gather": lambda x, a: _gathered(x[0], x[1], int(a.get("axis", 0))),
    "GlobalAveragePool": lambda x, a: _mean(x[0], range(2, x[0].ndim), True),
    "Greater": lambda x, a: np.where(x[0] > x[1], _ONE, np.float32(0)),
    "HardSigmoid": lambda x, a: _hard_sigmoid(x[0], a.get("alpha", 0.2), a.get("beta", 0.5)),
    "HardSwish": lambda x, a: x[0] * _hard_sigmoid(x[0], 1 / 6, 0.5),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, a: _leaky(x[0], a.get("alpha", 0.01)),
    "MatMul": lambda x, a: _matmul(x[0], x[1]),
    "Max": lambda x, a: _larger(x[0], x[1]),
    "Min": lambda x, a: _smaller(x[0], x[1]),
    "Mish": lambda x, a: x[0] * _tanh(_softplus(x[0])),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Pow": lambda x, a: _power(x[0], x[1]),
    "PRelu": lambda x, a: _leaky(x[0], x[1]),
    "ReduceMean": lambda x, a: _mean(x[0], x[1], bool(a.get("keepdims", 1))),
    "Relu": lambda x, a: _rectified(x[0]),
    "Resize": _blended,
    "Selu": lambda x, a: _selu(x[0], a),
    "Sigmoid": lambda x, a: _ONE / (_ONE + _exp(-x[0])),
    "Softmax": lambda x, a: np.moveaxis(_softmax(np.moveaxis(x[0], a.get("axis", -1), -1)), -1, a.get("axis", -1)),
    "Softplus": lambda x, a: _softplus(x[0]),
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: _tanh(x[0]),
    "Where": lambda x, a: np.where(x[0] > 0, x[1], x[2]),
}
