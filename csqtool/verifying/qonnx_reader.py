"""QONNX read without the exporter's code: its quantizers become standard operators that compute the same.

A `Quant` of a constant is a layer's weight: its integers are computed here, as the format defines them, and multiplied
by the scale again (DequantizeLinear). A `Quant` of anything else becomes QuantizeLinear, Clip and DequantizeLinear. The
file can then be run in onnxruntime and is held to what an ONNX file of the same network is held to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import Problem

QONNX_DOMAIN = "qonnx.custom_op.general"
INPUTS = {"Quant": 4, "BipolarQuant": 2}
DOMAINS = (QONNX_DOMAIN, "", "ai.onnx", "csqtool")
MAX_BITS = 16  # of a weight; of an activation eight
OPSETS = {"int8": 19, "int16": 21}  # the lowest in which the reference evaluator knows DequantizeLinear of a type
IR_VERSIONS = {19: 9, 21: 10}


class NotReadError(Exception):
    """A quantizer is none that has a meaning here; says which and why."""


@dataclass(frozen=True)
class Quantizer:
    """One quantizer of a file.

    Attributes:
        output: the value that it makes.
        bits: bits of its integers.
        signed: whether they can be below 0.
        narrow: whether the lowest (of unsigned ones the highest) is left out.
        zero_point: the integer that stands for 0.
        scale: step between two of them.
        weight: the tensor that it quantizes; None for an activation's.
    """

    output: str
    bits: int
    signed: bool
    narrow: bool
    zero_point: int
    scale: NDArray[np.float32]
    weight: str | None

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest integer."""
        if self.signed:
            return -(1 << (self.bits - 1)) + self.narrow, (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1 - self.narrow


@dataclass
class Lowered:
    """A QONNX file in standard operators.

    Attributes:
        proto: the file, its batch free.
        quantizers: what its quantizers were, by the value that each makes.
        problems: weights that do not lie on their quantizer's grid.
    """

    proto: onnx.ModelProto
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def is_qonnx(proto: onnx.ModelProto) -> bool:
    """Tell whether a file has operators of QONNX."""
    return any(node.domain == QONNX_DOMAIN for node in proto.graph.node)


def lowered(proto: onnx.ModelProto) -> Lowered:
    """Return a QONNX file in standard operators.

    Raises:
        NotReadError: it has another operator of its domain, or a quantizer whose meaning depends on the reader.
    """
    found = Lowered(onnx.ModelProto())
    found.proto.CopyFrom(proto)
    graph = found.proto.graph
    tensors = {t.name: t for t in graph.initializer if t.name not in {value.name for value in graph.input}}
    taken = {*tensors, *(value.name for value in graph.input), *(o for node in graph.node for o in node.output)}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.domain not in DOMAINS:
            raise NotReadError(f"{node.op_type}: an operator of {node.domain}")
        if node.domain != QONNX_DOMAIN:
            nodes.append(node)
            continue
        quantizer = _quantizer(node, tensors)
        found.quantizers[quantizer.output] = quantizer
        if quantizer.weight is None:
            made, constants = _activation(node.input[0], quantizer)
        else:
            values = numpy_helper.to_array(tensors[quantizer.weight])
            made, constants, problem = _weight(quantizer, values)
            found.problems += [problem] if problem is not None else []
        own = {t.name for t in constants} | {o for n in made[:-1] for o in n.output}
        if clash := sorted(name for name in own if name in taken and name != quantizer.weight):
            raise NotReadError(f"{quantizer.output}: the file has a value {clash[0]!r} already")
        added |= {tensor.name: tensor for tensor in constants}
        nodes += made
    _replace(found.proto, nodes, added)
    return found


def _replace(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], added: dict[str, onnx.TensorProto]) -> None:
    """Put nodes and tensors into a file; what only its quantizers read goes."""
    graph = proto.graph
    before = {name for node in graph.node if node.domain == QONNX_DOMAIN for name in node.input}
    copies = [_copy(node) for node in nodes]
    read = {name for node in copies for name in node.input} | {value.name for value in graph.output}
    kept = [t for t in graph.initializer if t.name not in added and not (t.name in before and t.name not in read)]
    kept_copies = [_copy(tensor) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend([*kept_copies, *added.values()])
    del graph.node[:]
    graph.node.extend(copies)
    opset = OPSETS["int16" if any(t.data_type == onnx.TensorProto.INT16 for t in added.values()) else "int8"]
    kept_imports = [_copy(one) for one in proto.opset_import if one.domain != QONNX_DOMAIN]
    for one in kept_imports:
        if one.domain in ("", "ai.onnx"):
            # What torch writes for opset 18 means the same in these.
            opset = max(opset, one.version)
            one.version = opset
    del proto.opset_import[:]
    proto.opset_import.extend(kept_imports)
    proto.ir_version = max(proto.ir_version, IR_VERSIONS.get(opset, 10))
    for value in (*graph.input, *graph.output):
        batch = value.type.tensor_type.shape.dim[:1]
        if batch and batch[0].dim_value == 1:  # hardware takes one sample; the graph is the same for more
            batch[0].dim_param = "batch"


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _quantizer(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> Quantizer:
    where = f"{node.op_type} {node.output[0] if node.output else ''}".strip()
    if node.op_type not in INPUTS:
        raise NotReadError(f"{where}: of {QONNX_DOMAIN}, Quant and BipolarQuant alone are read")
    if len(node.input) != INPUTS[node.op_type] or len(node.output) != 1:
        raise NotReadError(f"{where}: {len(node.input)} inputs instead of {INPUTS[node.op_type]}, or several outputs")
    numbers = [_scalar(tensors, name, f"{where}: input {i}") for i, name in enumerate(node.input[1:], 1)]
    weight = node.input[0] if node.input[0] in tensors else None
    if not np.isfinite(numbers[0]) or not numbers[0] > 0:
        raise NotReadError(f"{where}: its scale is {numbers[0]}, not above zero")
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "BipolarQuant":
        if given or weight is None:
            raise NotReadError(f"{where}: attributes, or no constant to quantize")
        return Quantizer(node.output[0], 1, True, False, 0, numbers[0], weight)
    if sorted(given) != ["narrow", "rounding_mode", "signed"] or given["rounding_mode"] != b"ROUND" \
            or given["signed"] not in (0, 1) or given["narrow"] not in (0, 1):  # fmt: skip
        raise NotReadError(f"{where}: its attributes are not signed, narrow and the rounding mode ROUND")
    zero_point, bits = (_integer(number, where) for number in numbers[1:])
    signed, narrow = bool(given["signed"]), bool(given["narrow"])
    if weight is not None:
        if not signed or zero_point or not 2 <= bits <= MAX_BITS:
            raise NotReadError(f"{where}: a weight's is signed, without a zero point, of 2 to {MAX_BITS} bits")
    elif narrow or not 2 <= bits <= 8 or not 0 <= zero_point < 1 << bits or (signed and zero_point):
        raise NotReadError(f"{where}: {bits} bits, zero point {zero_point}: no range of integers that is read here")
    return Quantizer(node.output[0], bits, signed, narrow, zero_point, numbers[0], weight)


def _scalar(tensors: dict[str, onnx.TensorProto], name: str, what: str) -> NDArray[np.float32]:
    """Return a constant with one element and no axis, as datatype inference wants them."""
    tensor = tensors.get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims):
        raise NotReadError(f"{what}: {name} is no constant float32 without axes")
    return np.asarray(numpy_helper.to_array(tensor))


def _integer(number: NDArray[np.float32], where: str) -> int:
    if not np.isfinite(number) or number != np.rint(number) or abs(number) > 1 << MAX_BITS:
        raise NotReadError(f"{where}: {number} is no small integer")
    return int(number)


def _weight(
    quantizer: Quantizer, values: NDArray[Any]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], Problem | None]:
    """Return a weight's integers as a tensor under its own name, and the node that scales them."""
    name = str(quantizer.weight)
    if values.dtype != np.float32 or not np.isfinite(values).all():
        raise NotReadError(f"{name}: a weight that is not float32, or not finite")
    if quantizer.bits == 1:
        q = np.where(values >= 0, 1, -1)
    else:
        low, high = quantizer.bounds
        q = np.rint(np.clip(values / quantizer.scale, low, high)).astype(np.int32)
    # A reader may take the values as they are stored: they have to be the quantizer's own.
    off = int((q.astype(np.float32) * quantizer.scale != values).sum())
    problem = (name, f"{off} of {values.size} values are not on the grid of their quantizer") if off else None
    kind = np.int8 if max(q.max(initial=0), ~q.min(initial=0)) < 128 else np.int16
    scale = f"{quantizer.output}::scale"
    constants = [
        numpy_helper.from_array(q.astype(kind), name),
        numpy_helper.from_array(np.asarray(quantizer.scale, np.float32), scale),
    ]
    return [helper.make_node("DequantizeLinear", [name, scale], [quantizer.output])], constants, problem


def _activation(source: str, quantizer: Quantizer) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that quantize an activation to uint8 and back."""
    name = quantizer.output
    zero_point = 1 << (quantizer.bits - 1) if quantizer.signed else quantizer.zero_point
    numbers = {"scale": np.asarray(quantizer.scale, np.float32), "zero_point": np.asarray(zero_point, np.uint8),
               "low": np.asarray(0, np.uint8), "high": np.asarray((1 << quantizer.bits) - 1, np.uint8)}  # fmt: skip
    used = list(numbers) if quantizer.bits < 8 else ["scale", "zero_point"]
    constants = [numpy_helper.from_array(numbers[part], f"{name}::{part}") for part in used]
    grid = [f"{name}::scale", f"{name}::zero_point"]
    nodes = [helper.make_node("QuantizeLinear", [source, *grid], [f"{name}::q"])]
    if quantizer.bits < 8:
        nodes.append(helper.make_node("Clip", [f"{name}::q", f"{name}::low", f"{name}::high"], [f"{name}::clipped"]))
    nodes.append(helper.make_node("DequantizeLinear", [nodes[-1].output[0], *grid], [name]))
    return nodes, constants


def width_problems(found: Lowered, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what the quantizers say of their integers that is not what the finalized model has."""
    by_weight: dict[str | None, list[Quantizer]] = {}
    for quantizer in found.quantizers.values():
        by_weight.setdefault(quantizer.weight, []).append(quantizer)
    for layer in model.layers:
        lowest = int(layer.q.min(initial=0))
        without_zero = bool((np.abs(layer.q) == 1).all())
        bits = 1 if without_zero else max(layer.bit_width, 2)
        for quantizer in by_weight.get(layer.name, ()):
            narrow = not without_zero and lowest > -(1 << (bits - 1))
            if quantizer.bits != bits:
                yield layer.name, f"its quantizer has {quantizer.bits} bits instead of {bits}"
            elif quantizer.narrow != narrow:
                yield layer.name, f"its quantizer is{'' if quantizer.narrow else ' not'} narrow"
    for activation in model.activations:
        one = found.quantizers.get(activation.name)
        if one is not None and one.bits != activation.bits:
            yield activation.name, f"its quantizer has {one.bits} bits instead of {activation.bits}"


def without_folding(model: QuantizedModel) -> QuantizedModel:
    """Return the finalized model whose BatchNorms stay on their own, as they do in QONNX."""
    from dataclasses import replace

    layers = tuple(replace(layer, batch_norm=None, batch_norm_epsilon=None) for layer in model.layers)
    return replace(model, layers=layers)
