"""What the C inference must compute, bit for bit: docs/c-inference.md on PyTorch's graph, in numpy and float64 sums.

The graph is a fresh capture of the finalized network with marker nodes. It is run node by node on real samples.
Integers are kept centered, minus their zero point. What ends in a quantizer is kept until its grid is known. Sums are
computed in double precision, which holds them exactly. Nothing of the exporter is used.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from csqtool.verifying.c_batches import joined, moved_values
from csqtool.verifying.c_float_layers import FloatSums, layer_of_floats, ran
from csqtool.verifying.c_floats import Floats, evaluate
from csqtool.verifying.c_functions import FUNCTIONS
from csqtool.verifying.c_numbers import CGrid, Ints
from csqtool.verifying.c_sums import Computed, LayerSums, Weight
from csqtool.verifying.c_values import Curve, NotCoveredError, Pending, Steps, in_float
from csqtool.verifying.weights import expected_in_onnx

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Identity", "Dropout")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class CReference:
    """The network in the arithmetic of docs/c-inference.md.

    Attributes:
        graph: the capture's.
        finite: of the last run's samples, whether everything in float was, as the page presumes.

    Args:
        proto: a capture with marker nodes, from `csqtool.verifying.expected_graph.captured`.
        model: the finalized model.
        in_float: whether results are moved to their grids in float32, not by integers.

    Attributes:
        input_place: the quantizer of the network's input; None where nothing quantizes it.
        moved: values whose first axis is not the batch; where there are any, samples are computed one by one.
        moved_places: quantizers of such values.
    """

    def __init__(self, proto: onnx.ModelProto, model: QuantizedModel, *, in_float: bool = False) -> None:
        self.graph = proto.graph
        self._in_float = in_float
        self._model = model
        self._quantizers = {a.name: a for a in model.activations}
        self._constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.finite: NDArray[np.bool_] = np.ones(0, bool)
        self.input_place: str | None = next((
            _attributes(node)["name"].decode() for node in self.graph.node
            if node.domain == MARKER_DOMAIN and node.input[0] == self.graph.input[0].name
        ), None)  # fmt: skip
        self.moved = moved_values(self.graph)
        self.moved_places = frozenset(
            _attributes(node)["name"].decode() for node in self.graph.node
            if node.domain == MARKER_DOMAIN and node.output[0] in self.moved
        )  # fmt: skip
        self._opsets = {o.domain: o.version for o in proto.opset_import if o.domain != MARKER_DOMAIN}

    def run(self, inputs: NDArray[np.float32], forced: Mapping[str, NDArray[np.uint8]] | None = None) -> Computed:
        """Compute samples.

        Args:
            inputs: [N, …].
            forced: integers that replace those of a quantizer, or bytes those of a layer of floats, for what comes
                after it.

        Raises:
            NotCoveredError: names the node that is not covered.
        """
        if not self.moved:
            return self._run(inputs, forced or {})
        runs, finite = [], []
        for i in range(len(inputs)):
            runs.append(
                self._run(inputs[i : i + 1], {name: values[i : i + 1] for name, values in (forced or {}).items()})
            )
            finite.append(self.finite)
        self.finite = np.concatenate(finite)
        return joined(runs)

    def _run(self, inputs: NDArray[np.float32], forced: Mapping[str, NDArray[np.uint8]]) -> Computed:
        computed = Computed(forced=forced)
        self.finite = np.ones(len(inputs), bool)
        values: dict[str, Any] = {**self._constants, self.graph.input[0].name: inputs}
        if self.input_place is None:
            values[self.graph.input[0].name] = Floats(inputs)
        for node in self.graph.node:
            arguments = [values[name] if name else None for name in node.input]
            if node.domain == MARKER_DOMAIN:
                values[node.output[0]] = self._marked(node, arguments, computed)
                continue
            try:
                found = self._evaluate(node, arguments, computed)
            except NotCoveredError:
                raise
            except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
                raise NotCoveredError(f"{node.op_type} {node.output[0]!r}: {error}") from error
            values.update(zip(node.output, found, strict=False))
        computed.output = _as_float(values[self.graph.output[0].name])
        for name in computed.repeated:
            del computed.places[name]
        return computed

    def _marked(self, node: onnx.NodeProto, arguments: list[Any], computed: Computed) -> Any:
        name = _attributes(node)["name"].decode()
        if node.op_type == "Weight":
            layer = self._model.layer(name)
            expected = expected_in_onnx(self._model, layer)
            return Weight(layer.name, expected.q.astype(np.int64), expected.scale, expected.bias)
        quantizer = self._quantizers[name]
        grid = CGrid(np.float32(quantizer.scale), quantizer.zero_point, 0, quantizer.largest, self._in_float)
        value = arguments[0]
        if isinstance(value, np.ndarray | Floats):  # the network's input, or computed in float
            found = grid.measured(value.x if isinstance(value, Floats) else value)
        elif isinstance(value, Steps):
            found = _identity(value).on(grid)
        else:
            found = value.on(grid)
        integers = (found + grid.zero_point).astype(np.uint8)
        is_moved = node.output[0] in self.moved
        computed.places[name] = integers[None] if is_moved else integers
        if name in computed.forced:
            given = computed.forced[name]
            found = (given[0] if is_moved else given).astype(np.int64) - grid.zero_point
        return Steps(found, grid)

    def _evaluate(self, node: onnx.NodeProto, arguments: list[Any], computed: Computed) -> list[Any]:
        attributes = _attributes(node)
        known = [a for a in arguments if isinstance(a, Steps | Curve | Pending | Weight | Floats)]
        if not known:
            return list(ReferenceEvaluator(node, opsets=self._opsets).run(None, _named(node, arguments)))
        if node.op_type == "Shape":
            return [np.array(in_float(arguments[0]).shape, np.int64)]
        is_blend = node.op_type == "Resize" and attributes.get("mode", b"nearest") != b"nearest"
        if not is_blend and node.op_type in (*VIEWS, "MaxPool", "Resize") and not isinstance(arguments[0], Weight):
            return self._rearranged(node, attributes, arguments)
        return [self._combined(node, attributes, arguments, computed)]

    def _combined(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], computed: Computed
    ) -> Any:
        first = arguments[0]
        if node.op_type == "Transpose" and isinstance(first, Weight):
            return Weight(first.name, first.q.transpose(attributes["perm"]), first.scale, first.bias)
        if node.op_type == "BatchNormalization" and _is_sum(first):
            return first  # folded into the layer's integers
        layer = {"Gather": self._rows} if isinstance(first, Weight) else dict.fromkeys(PRODUCTS, self._product)
        if node.op_type in layer and any(isinstance(one, Weight) for one in arguments[:2]):
            return layer[node.op_type](node, attributes, arguments, computed)
        if node.op_type == "Concat":
            return self._joined(node, attributes, arguments)
        if node.op_type in ("GlobalAveragePool", "AveragePool", "ReduceMean"):
            found = self._average(node, attributes, arguments)
            return self._floats(node, attributes, arguments) if found is None else found
        return self._function(node, attributes, arguments)

    def _function(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> Any:
        first = arguments[0]
        if isinstance(first, Pending) and node.op_type in ("Relu", "Clip") and not _is_rearranged_float(first):
            bounds = [0.0, None] if node.op_type == "Relu" else [_number(a) for a in (*arguments[1:], None, None)][:2]
            return Pending(
                first.finish, (*first.bounds, (bounds[0], bounds[1])), first.post, first.layer, first.in_float
            )
        if node.op_type == "Add" and any(isinstance(a, Pending) for a in arguments):
            biased = _biased(arguments)
            return self._floats(node, attributes, arguments) if biased is None else biased
        known = [_curve(a) for a in arguments if isinstance(a, Steps | Curve)]
        tables = [a if isinstance(a, Steps | Curve) else _number(a) for a in arguments]
        same = known and all(c.source is known[0].source for c in known)
        if same and node.op_type in FUNCTIONS and None not in tables:
            found = FUNCTIONS[node.op_type]([_as_table(a) for a in tables], attributes)
            return Curve(known[0].source, found.numpy(), lambda: self._floats(node, attributes, arguments).x)
        if node.op_type in ("Add", "Sub", "Mul") and all(isinstance(a, Steps) for a in arguments):
            one, other = arguments
            if _fit(one.d, other.d):
                return Pending(
                    lambda grid: operators.combined(node.op_type, one.d, one.grid, other.d, other.grid, grid),
                    in_float=lambda: self._floats(node, attributes, arguments).x,
                )
        return self._floats(node, attributes, arguments)

    def _average(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> Pending | None:
        """Return means of windows; None for means along other axes, or of floats."""
        value = arguments[0]
        if not isinstance(value, Steps):
            return None
        if node.op_type == "ReduceMean":
            axes, rank = sorted(int(axis) for axis in np.asarray(arguments[1]).reshape(-1)), value.d.ndim
            if rank not in (3, 4) or [axis % rank for axis in axes] != list(range(2, rank)):
                return None
        sums, counts = operators.window_sums(node.op_type, value.d, attributes, arguments[1:])

        def finish(grid: CGrid) -> Ints:
            return grid.scaled(sums, np.float64(value.grid.scale) / np.float64(grid.scale) / counts)

        return Pending(finish, in_float=lambda: self._floats(node, attributes, arguments).x)

    def _joined(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> Pending | Floats:
        """Return values one after another: integers through tables where all are quantized, else floats."""
        if not all(isinstance(a, Steps) for a in arguments):
            return self._floats(node, attributes, arguments)
        curves, axis = [_curve(a) for a in arguments], int(attributes["axis"])
        return Pending(
            lambda grid: np.concatenate([curve.on(grid) for curve in curves], axis),
            in_float=lambda: self._floats(node, attributes, arguments).x,
        )

    def _floats(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], which: int = 0
    ) -> Floats:
        """Return what an operator computes in float."""
        inputs = [in_float(a) for a in arguments]
        try:
            found = evaluate(node.op_type, inputs, attributes, which)
            self.finite = self.finite & np.isfinite(found).reshape(len(self.finite), -1).all(axis=1)
            return Floats(found)
        except KeyError as error:
            raise NotCoveredError(f"{node.op_type} {node.output[0]!r}") from error

    def _rearranged(self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any]) -> list[Any]:
        first, rest = arguments[0], arguments[1:]

        def change(d: Ints, which: int = 0) -> Ints:
            if node.op_type == "MaxPool":
                return operators.largest(d, attributes)
            if node.op_type == "Resize":
                return operators.repeated(d, rest)
            if node.op_type == "Pad":
                return operators.padded(d, attributes, rest)
            if node.op_type in ("Identity", "Dropout"):
                return d
            found = ReferenceEvaluator(node, opsets=self._opsets).run(None, _named(node, [d, *rest]))
            return np.asarray(found[which])

        outputs = range(len(node.output))
        fills = node.op_type == "Pad" and len(rest) > 1 and rest[1] is not None and np.any(rest[1])
        if isinstance(first, Floats) or fills or (isinstance(first, Pending) and len(node.output) > 1):
            x = in_float(first)
            return [Floats(np.asarray(change(x, i))) for i in outputs]
        if isinstance(first, Steps):
            return [Steps(change(first.d, i), first.grid) for i in outputs]
        if isinstance(first, Curve):
            first = Pending(first.on, in_float=first.in_float)
        if isinstance(first, Pending) and len(node.output) == 1:
            return [Pending(first.finish, first.bounds, (*first.post, change), first.layer, first.in_float)]
        raise NotCoveredError(f"{node.op_type} {node.output[0]!r}")

    def _rows(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], computed: Computed
    ) -> Floats:
        """Return an embedding's rows."""
        weight, numbers = arguments
        if attributes.get("axis", 0) or not isinstance(numbers, Floats) or weight.scale.size != 1:
            raise NotCoveredError(f"{node.op_type} {node.output[0]!r}")
        chosen = weight.q[np.clip(numbers.x.astype(np.int64), 0, len(weight.q) - 1)]
        found = chosen.astype(np.float32) * np.float32(weight.scale.reshape(-1)[0])
        return Floats(ran(weight.name, weight.q.astype(np.int64), found, computed))

    def _product(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], arguments: list[Any], computed: Computed
    ) -> Pending | Floats:
        source, weight = arguments[0], arguments[1]
        is_spatial = node.op_type in ("Conv", "ConvTranspose")
        q = weight.q
        if not is_spatial and not (node.op_type == "Gemm" and attributes.get("transB", 0)):
            q = q.T
        if not isinstance(source, Steps):
            in_floats = layer_of_floats(
                node.op_type, in_float(source), weight, q, attributes, computed, is_moved=node.output[0] in self.moved
            )
            return Pending(in_floats.on, layer=in_floats)
        channels = q.shape[1] * attributes.get("group", 1) if node.op_type == "ConvTranspose" else q.shape[0]
        scale = np.broadcast_to(np.asarray(weight.scale, np.float32).reshape(-1), (channels,))
        sums = operators.product(node.op_type, source.d, q, attributes)
        shape = [1] * sums.ndim
        shape[1 if is_spatial else -1] = channels
        filters = operators.filters_in_flash(node.op_type, q, int(attributes.get("group", 1)))
        layer = LayerSums(weight.name, filters, np.zeros(channels, np.int64), sums, source.grid, scale, shape, computed)
        return _with_bias(layer, weight.bias) if node.op_type != "MatMul" else Pending(layer.on, layer=layer)


def _is_rearranged_float(value: Pending) -> bool:
    """Tell whether a layer of floats was rearranged: bounds come after that."""
    return isinstance(value.layer, FloatSums) and bool(value.post)


def _is_sum(value: Any) -> bool:
    """Return whether a value is a layer's sums, not bounded."""
    return isinstance(value, Pending) and value.layer is not None and not value.bounds


def _fit(a: Ints, b: Ints) -> bool:
    """Return whether two values have the same sizes, or one of them has one value a channel."""
    small, large = sorted((a, b), key=lambda d: d[0].size)
    return a.shape == b.shape or (a.ndim == b.ndim and small.shape[1] == large.shape[1] == small[0].size)


def _biased(arguments: list[Any]) -> Pending | Floats | None:
    """Return a matrix product with the bias that is added to it, None if it is no such sum."""
    for value, bias in (arguments, reversed(arguments)):
        if _is_sum(value) and isinstance(bias, np.ndarray) and bias.ndim == 1:
            return _with_bias(value.layer, bias)
    return None


def _with_bias(layer: LayerSums | FloatSums, bias: NDArray[Any] | None) -> Pending | Floats:
    """Return a layer with its bias, in float where that is not on the grid of the sums."""
    if bias is not None:
        found = layer.with_bias(bias) if isinstance(layer, LayerSums) else layer.plus(bias)
        if isinstance(found, np.ndarray):
            return Floats(found)
        layer = found
    return Pending(layer.on, layer=layer)


def _identity(value: Steps) -> Curve:
    table = (np.arange(256) - value.grid.zero_point) * np.float64(value.grid.scale)
    return Curve(value, table, lambda: value.d.astype(np.float32) * value.grid.scale)


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


def _as_float(value: Any) -> NDArray[np.float32]:
    if isinstance(value, Steps | Pending | Floats):
        return np.asarray(in_float(value), np.float32)
    raise NotCoveredError("the output is neither quantized nor computed from what is")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _named(node: onnx.NodeProto, arguments: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in zip(node.input, arguments, strict=False) if name}


def _number(value: Any) -> float | None:
    return float(value.reshape(())) if isinstance(value, np.ndarray) and value.size == 1 else None
