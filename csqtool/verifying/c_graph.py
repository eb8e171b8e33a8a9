"""What the C inference must compute, bit for bit: docs/c-inference.md on PyTorch's graph, in numpy and float64 sums.

The graph is a fresh capture of the finalized network with marker nodes. It is run node by node on real samples.
Integers are kept centered, minus their zero point. What ends in a quantizer is kept until its grid is known. Sums are
computed in double precision, which holds them exactly. Nothing of the exporter is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from csqtool.nn.markers import MARKER_DOMAIN
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying import c_operators as operators
from csqtool.verifying.c_functions import FUNCTIONS
from csqtool.verifying.c_numbers import CGrid, Ints, factors
from csqtool.verifying.weights import expected_in_onnx

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Identity", "Dropout")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class NotCoveredError(Exception):
    """The graph holds something that the C inference does not define."""


@dataclass(frozen=True)
class Steps:
    """Quantized values: centered integers [N, …] on a grid."""

    d: Ints
    grid: CGrid


@dataclass(frozen=True)
class Curve:
    """A function of quantized values: `table[q]` is its value for the integer q of `source`."""

    source: Steps
    table: NDArray[np.float64]

    def on(self, grid: CGrid) -> Ints:
        """Return centered integers on a grid (section 5.1)."""
        with np.errstate(all="ignore"):
            steps = np.rint(np.nan_to_num(self.table / np.float64(grid.scale), posinf=1e9, neginf=-1e9))
        return np.asarray(grid.clipped(steps)[self.source.d + self.source.grid.zero_point])


@dataclass(frozen=True)
class Weight:
    """A quantized weight, as the graph has it."""

    name: str
    q: NDArray[Any]
    scale: NDArray[np.float32]
    bias: NDArray[np.float64] | None


@dataclass(frozen=True)
class Pending:
    """A result before its quantizer.

    Attributes:
        finish: returns centered integers on a grid.
        bounds: of ReLU and Clip after it, in order.
        post: rearrangements of the integers after it.
        layer: the layer whose sums it is.
    """

    finish: Callable[[CGrid], Ints]
    bounds: tuple[tuple[float | None, float | None], ...] = ()
    post: tuple[Callable[[Ints], Ints], ...] = ()
    layer: LayerSums | None = None

    def on(self, grid: CGrid) -> Ints:
        """Return centered integers on a grid."""
        for low, high in reversed(self.bounds):  # the exporter meets the last one first
            grid = grid.bounded(low, high)
        found = self.finish(grid)
        for change in self.post:
            found = change(found)
        return found


@dataclass
class LayerNumbers:
    """What one layer must hold: integers [channels, kernel…, inputs], biases, multipliers, shifts (0 for float)."""

    name: str
    filters: NDArray[np.int64]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]


@dataclass
class Computed:
    """What a run computed.

    Attributes:
        places: integers of each activation quantizer, uint8 [N, …], in order.
        layers: every run of a layer, in order.
        output: float32 [N, …].
    """

    places: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    layers: list[LayerNumbers] = field(default_factory=list)
    output: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class CReference:
    """The network in the arithmetic of docs/c-inference.md.

    Args:
        proto: a capture with marker nodes, from `csqtool.verifying.expected_graph.captured`.
        model: the finalized model.
    """

    def __init__(self, proto: onnx.ModelProto, model: QuantizedModel) -> None:
        self._graph = proto.graph
        self._model = model
        self._quantizers = {a.name: a for a in model.activations}
        self._constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self._opsets = {o.domain: o.version for o in proto.opset_import if o.domain != MARKER_DOMAIN}

    def run(self, inputs: NDArray[np.float32], forced: Mapping[str, NDArray[np.uint8]] | None = None) -> Computed:
        """Compute samples.

        Args:
            inputs: [N, …].
            forced: integers that replace those of a quantizer, for what comes after it.

        Raises:
            NotCoveredError: names the node that is not covered.
        """
        computed = Computed()
        values: dict[str, Any] = {**self._constants, self._graph.input[0].name: inputs}
        for node in self._graph.node:
            arguments = [values[name] if name else None for name in node.input]
            if node.domain == MARKER_DOMAIN:
                values[node.output[0]] = self._marked(node, arguments, computed, forced or {})
                continue
            try:
                found = self._evaluate(node, arguments, computed)
            except NotCoveredError:
                raise
            except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
                raise NotCoveredError(f"{node.op_type} {node.output[0]!r}: {error}") from error
            values.update(zip(node.output, found, strict=False))
        computed.output = _as_float(values[self._graph.output[0].name])
        return computed

    def _marked(self, node: onnx.NodeProto, arguments: list[Any], computed: Computed, forced: Mapping[str, Any]) -> Any:
        name = _attributes(node)["name"].decode()
        if node.op_type == "Weight":
            layer = self._model.layer(name)
            expected = expected_in_onnx(self._model, layer)
            return Weight(layer.name, expected.q.astype(np.int64), expected.scale, expected.bias)
        quantizer = self._quantizers[name]
        grid = CGrid(np.float32(quantizer.scale), quantizer.zero_point, 0, quantizer.largest)
        value = arguments[0]
        if isinstance(value, np.ndarray):  # the network's input
            with np.errstate(all="ignore"):
                steps = np.rint(value.astype(np.float32) / grid.scale)
            found = grid.clipped(np.nan_to_num(np.clip(steps, -1024, 1024), nan=-1024))
        elif isinstance(value, Steps):
            found = _identity(value).on(grid)
        else:
            found = value.on(grid)
        computed.places[name] = (found + grid.zero_point).astype(np.uint8)
        if name in forced:
            found = forced[name].astype(np.int64) - grid.zero_point
        return Steps(found, grid)

    def _evaluate(self, node: onnx.NodeProto, arguments: list[Any], computed: Computed) -> list[Any]:
        attributes = _attributes(node)
        known = [a for a in arguments if isinstance(a, Steps | Curve | Pending | Weight)]
        if not known:
            return list(ReferenceEvaluator(node, opsets=self._opsets).run(None, _named(node, arguments)))
        if node.op_type in (*VIEWS, "MaxPool", "Resize") and not isinstance(arguments[0], Weight):
            return self._rearranged(node, attributes, arguments)
        return [self._combined(node, attributes, arguments, computed)]

    def _combined(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], computed: Computed
    ) -> Any:
        first = arguments[0]
        if node.op_type == "Transpose" and isinstance(first, Weight):
            return Weight(first.name, first.q.transpose(attributes["perm"]), first.scale, first.bias)
        if node.op_type == "BatchNormalization" and isinstance(first, Pending) and first.layer is not None:
            return first  # folded into the layer's integers
        if node.op_type in PRODUCTS and isinstance(arguments[1], Weight):
            return self._product(node, attributes, arguments, computed)
        if node.op_type == "Concat":
            return _joined([_curve(a) for a in arguments], int(attributes["axis"]))
        if node.op_type in ("GlobalAveragePool", "AveragePool", "ReduceMean"):
            return _average(node, attributes, arguments)
        return self._function(node, attributes, arguments)

    def _function(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> Any:
        first = arguments[0]
        if isinstance(first, Pending) and node.op_type in ("Relu", "Clip"):
            bounds = [0.0, None] if node.op_type == "Relu" else [_number(a) for a in (*arguments[1:], None, None)][:2]
            return Pending(first.finish, (*first.bounds, (bounds[0], bounds[1])), first.post)
        if node.op_type == "Add" and any(isinstance(a, Pending) for a in arguments):
            return _biased(node, arguments)
        known = [_curve(a) for a in arguments if isinstance(a, Steps | Curve)]
        tables = [a if isinstance(a, Steps | Curve) else _number(a) for a in arguments]
        same = known and all(c.source is known[0].source for c in known)
        if same and node.op_type in FUNCTIONS and None not in tables:
            found = FUNCTIONS[node.op_type]([_as_table(a) for a in tables], attributes)
            return Curve(known[0].source, found.numpy())
        if node.op_type in ("Add", "Sub", "Mul") and all(isinstance(a, Steps) for a in arguments):
            one, other = arguments
            return Pending(lambda grid: operators.combined(node.op_type, one.d, one.grid, other.d, other.grid, grid))
        raise NotCoveredError(f"{node.op_type} {node.output[0]!r}")

    def _rearranged(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> list[Any]:
        first, rest = arguments[0], arguments[1:]

        def change(d: Ints, which: int = 0) -> Ints:
            if node.op_type == "MaxPool":
                return operators.largest(d, attributes)
            if node.op_type == "Resize":
                return operators.repeated(d, rest)
            if node.op_type in ("Identity", "Dropout"):
                return d
            found = ReferenceEvaluator(node, opsets=self._opsets).run(None, _named(node, [d, *rest]))
            return np.asarray(found[which])

        outputs = range(len(node.output))
        if isinstance(first, Steps):
            return [Steps(change(first.d, i), first.grid) for i in outputs]
        if isinstance(first, Curve):
            first = Pending(first.on)
        if isinstance(first, Pending) and len(node.output) == 1:
            return [Pending(first.finish, first.bounds, (*first.post, change), first.layer)]
        raise NotCoveredError(f"{node.op_type} {node.output[0]!r}")

    def _product(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], computed: Computed
    ) -> Pending:
        source, weight = arguments[0], arguments[1]
        if not isinstance(source, Steps):
            raise NotCoveredError(f"{node.op_type} {node.output[0]!r}: its input is not quantized")
        is_spatial = node.op_type in ("Conv", "ConvTranspose")
        q = weight.q
        if not is_spatial and not (node.op_type == "Gemm" and attributes.get("transB", 0)):
            q = q.T
        channels = q.shape[1] * attributes.get("group", 1) if node.op_type == "ConvTranspose" else q.shape[0]
        scale = np.broadcast_to(np.asarray(weight.scale, np.float32).reshape(-1), (channels,))
        sums = operators.product(node.op_type, source.d, q, attributes)
        shape = [1] * sums.ndim
        shape[1 if is_spatial else -1] = channels
        filters = operators.filters_in_flash(node.op_type, q, int(attributes.get("group", 1)))
        layer = LayerSums(weight.name, filters, np.zeros(channels, np.int64), sums, source.grid, scale, shape, computed)
        return (layer if node.op_type == "MatMul" or weight.bias is None else layer.plus(weight.bias)).pending()


@dataclass(frozen=True)
class LayerSums:
    """A layer's sums before their quantizer.

    Attributes:
        name: the parameter.
        filters: integers as they lie in flash.
        bias: in units of the sums.
        sums: with the bias, [N, …].
        source: the input's grid.
        scale: of each channel.
        shape: the shape that numbers of channels have beside `sums`.
        computed: told each run of the layer: there is one for each quantizer of its result.
    """

    name: str
    filters: NDArray[np.int64]
    bias: NDArray[np.int64]
    sums: Ints
    source: CGrid
    scale: NDArray[np.float32]
    shape: list[int]
    computed: Computed

    @property
    def unit(self) -> NDArray[np.float32]:
        """Value of one unit of the sums, by channel."""
        unit: NDArray[np.float32] = np.float32(self.source.scale) * self.scale
        return unit

    def plus(self, bias: NDArray[Any]) -> LayerSums:
        """Return the sums with a bias in float."""
        steps = np.rint(bias.astype(np.float64) / self.unit.astype(np.float64)).astype(np.int64)
        return replace(self, bias=self.bias + steps, sums=self.sums + steps.reshape(self.shape))

    def pending(self) -> Pending:
        """Return the layer's result."""
        return Pending(self._on, layer=self)

    def _on(self, grid: CGrid) -> Ints:
        ratios = np.float64(self.source.scale) * self.scale.astype(np.float64) / np.float64(grid.scale)
        multiplier, shift = factors(ratios)
        self._ran(multiplier, shift)
        return grid.rounded(self.sums * multiplier.reshape(self.shape), shift.reshape(self.shape))

    def as_float(self) -> NDArray[np.float32]:
        """Return the result in float (section 2)."""
        self._ran(np.zeros_like(self.bias), np.zeros_like(self.bias))
        found: NDArray[np.float32] = self.sums.astype(np.float32) * self.unit.reshape(self.shape)
        return found

    def _ran(self, multiplier: NDArray[np.int64], shift: NDArray[np.int64]) -> None:
        total = self.filters.reshape(len(self.filters), -1).sum(axis=1)
        stored = self.bias - self.source.zero_point * total
        self.computed.layers.append(LayerNumbers(self.name, self.filters, stored, multiplier, shift))


def _biased(node: onnx.NodeProto, arguments: list[Any]) -> Pending:
    """Return a matrix product with the bias that is added to it."""
    for value, bias in (arguments, reversed(arguments)):
        if isinstance(value, Pending) and value.layer is not None and isinstance(bias, np.ndarray) and bias.ndim == 1:
            return value.layer.plus(bias).pending()
    raise NotCoveredError(f"{node.op_type} {node.output[0]!r}")


def _identity(value: Steps) -> Curve:
    table = (np.arange(256) - value.grid.zero_point) * np.float64(value.grid.scale)
    return Curve(value, table)


def _as_table(value: Any) -> Tensor:
    if isinstance(value, Steps | Curve):
        return torch.from_numpy(_curve(value).table)
    return torch.full((256,), float(value), dtype=torch.float64)


def _curve(value: Any) -> Curve:
    if isinstance(value, Steps):
        return _identity(value)
    if isinstance(value, Curve):
        return value
    raise NotCoveredError("an operand in float")


def _joined(curves: list[Curve], axis: int) -> Pending:
    return Pending(lambda grid: np.concatenate([curve.on(grid) for curve in curves], axis))


def _average(node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> Pending:
    value = arguments[0]
    if not isinstance(value, Steps):
        raise NotCoveredError(f"{node.op_type} {node.output[0]!r}: its input is not quantized")
    sums, counts = operators.window_sums(node.op_type, value.d, attributes, arguments[1:])

    def finish(grid: CGrid) -> Ints:
        ratio = np.float64(value.grid.scale) / np.float64(grid.scale)
        multiplier, shift = factors(ratio / counts)
        return grid.rounded(sums * multiplier, shift)

    return Pending(finish)


def _as_float(value: Any) -> NDArray[np.float32]:
    if isinstance(value, Steps):
        return value.d.astype(np.float32) * value.grid.scale
    if isinstance(value, Pending) and value.layer is not None and not value.bounds:
        found: NDArray[Any] = value.layer.as_float()
        for change in value.post:
            found = change(found)
        return found.astype(np.float32)
    raise NotCoveredError("the output is neither quantized nor a layer's sum")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _named(node: onnx.NodeProto, arguments: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in zip(node.input, arguments, strict=False) if name}


def _number(value: Any) -> float | None:
    return float(value.reshape(())) if isinstance(value, np.ndarray) and value.size == 1 else None
