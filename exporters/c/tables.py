"""Functions of one quantized value as tables of 256 integers, evaluated in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.c.graph import Graph
from exporters.c.program import Grid, Value

Array = NDArray[np.float64]


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(alpha * x + beta, 0, 1)


def _selu(x: Array, a: Mapping[str, Any]) -> Array:
    return float(a.get("gamma", 1.0507010221481323)) * _elu(x, float(a.get("alpha", 1.6732631921768188)))


_erf = np.vectorize(math.erf, otypes=[np.float64])

# Operators by name: from inputs and attributes.
FUNCTIONS: Mapping[str, Callable[[list[Array], Mapping[str, Any]], Array]] = {
    "Abs": lambda x, a: np.abs(x[0]),
    "Add": lambda x, a: x[0] + x[1],
    "Clip": lambda x, a: np.clip(x[0], x[1], x[2]),
    "Div": lambda x, a: x[0] / x[1],
    "Elu": lambda x, a: _elu(x[0], float(a.get("alpha", 1.0))),
    "Erf": lambda x, a: _erf(x[0]),
    "Exp": lambda x, a: np.exp(x[0]),
    "Greater": lambda x, a: np.where(x[0] > x[1], 1.0, 0.0),
    "HardSigmoid": lambda x, a: _hard_sigmoid(x[0], float(a.get("alpha", 0.2)), float(a.get("beta", 0.5))),
    "HardSwish": lambda x, a: x[0] * np.clip(x[0] / 6 + 0.5, 0, 1),
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: np.where(x[0] < 0, float(a.get("alpha", 0.01)) * x[0], x[0]),
    "Max": lambda x, a: np.maximum(x[0], x[-1]),
    "Min": lambda x, a: np.minimum(x[0], x[-1]),
    "Mish": lambda x, a: x[0] * np.tanh(_softplus(x[0])),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Pow": lambda x, a: np.power(x[0], x[1]),
    "PRelu": lambda x, a: np.where(x[0] < 0, x[0] * x[1], x[0]),
    "Relu": lambda x, a: np.maximum(x[0], 0),
    "Selu": lambda x, a: _selu(x[0], a),
    "Sigmoid": lambda x, a: _sigmoid(x[0]),
    "Softplus": lambda x, a: _softplus(x[0]),
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: np.tanh(x[0]),
    "Where": lambda x, a: np.where(x[0] > 0, x[1], x[2]),
}  # fmt: skip


class Curve:
    """The function that a value is of one quantized value, where it is of one alone, element by element.

    Args:
        graph: the graph.
        quantized: returns the quantized value of a name, None where it is none.
    """

    def __init__(self, graph: Graph, quantized: Callable[[str], Value | None]) -> None:
        self._graph = graph
        self._quantized = quantized

    def source(self, name: str) -> Value | None:
        """Return the quantized value that `name` is a function of, None where there is no single one."""
        found = self._sources(name, {})
        return found[0] if found is not None and len(found) == 1 else None

    def _sources(self, name: str, known: dict[str, list[Value] | None]) -> list[Value] | None:
        """Return the quantized values below `name`; None where something else than a function is on the way."""
        if name in known:
            return known[name]
        known[name] = self._sources_of(name, known)
        return known[name]

    def _sources_of(self, name: str, known: dict[str, list[Value] | None]) -> list[Value] | None:
        if self._graph.number(name) is not None:
            return []
        value = self._quantized(name)
        if value is not None:
            return [value]
        node = self._graph.makers.get(name)
        if node is None or node.op_type not in FUNCTIONS or node.domain or not all(node.input):
            return None
        values: list[Value] = []
        for one in node.input:
            below = self._sources(one, known)
            if below is None:
                return None
            values += [v for v in below if v not in values]
        return values

    def table(self, name: str, source: Value, target: Grid) -> NDArray[np.uint8]:
        """Return the table of 256 integers from the grid of `source` to `target`."""
        grid = source.grid
        x = (np.arange(256) - grid.zero_point) * np.float64(grid.scale)
        with np.errstate(all="ignore"):
            y = self._evaluated(name, x, {})
            steps = np.rint(np.nan_to_num(y / np.float64(target.scale), posinf=1e9, neginf=-1e9)) + target.zero_point
        table: NDArray[np.uint8] = np.clip(steps, target.low, target.high).astype(np.uint8)
        return table

    def _evaluated(self, name: str, x: Array, known: dict[str, Array]) -> Array:
        if name in known:
            return known[name]
        number = self._graph.number(name)
        if number is not None:
            result = np.full(x.shape, np.float64(number))
        elif self._quantized(name) is not None:
            result = x
        else:
            node: onnx.NodeProto = self._graph.makers[name]
            inputs = [self._evaluated(one, x, known) for one in node.input]
            result = FUNCTIONS[node.op_type](inputs, self._graph.attributes(node))
        known[name] = result
        return result
