"""The weights level: every integer, scale and bias of a file against the finalized model, bit for bit.

What a file must contain is computed here from the finalized model alone, without the exporters' code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.finalized_file import to_tensors
from csqtool.folding import epsilon_to_fold
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.verifying.float_folding import is_folded
from csqtool.verifying.stored_weights import StoredWeights, WeightUse

Problem = tuple[str, str]  # layer, what is wrong with it


@dataclass(frozen=True)
class Expected:
    """What an ONNX file must contain for one layer."""

    q: NDArray[Any]
    scale: NDArray[np.float32]
    bias: NDArray[np.float64] | None
    bias_step: NDArray[np.float32] | None


def expected_in_onnx(model: QuantizedModel, layer: QuantizedLayer) -> Expected:
    """Return a layer's integers, scales and bias with its BatchNorm folded (w·γ/σ, β + (b − μ)·γ/σ).

    Raises:
        FormatError: the finalized model lacks a tensor or epsilon that folding needs.
    """
    stem = layer.name[: -len("weight")] if layer.name.endswith("weight") else None
    bias = _double(model, f"{stem}bias") if stem is not None else None
    q: NDArray[Any] = layer.q
    scale = np.asarray(layer.scale, np.float32)
    if layer.batch_norm is not None:
        epsilon = epsilon_to_fold(layer, model.tensors)
        norm = {part: model.tensors[f"{layer.batch_norm}.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        slope = norm["weight"] / np.sqrt(norm["running_var"] + epsilon)
        scale = (np.abs(slope) * float(layer.scale)).astype(np.float32)
        direction = np.where(slope < 0, -1, 1)
        vanished = scale == 0  # the channel is a constant: it is stored as zeros, at the layer's own scale
        scale[vanished], direction[vanished] = layer.scale, 0
        q = np.stack([channel * d for channel, d in zip(q.astype(np.int32), direction, strict=True)]).astype(q.dtype)
        bias = norm["bias"] + ((0.0 if bias is None else bias) - norm["running_mean"]) * slope
    step = None
    if bias is not None and layer.input_quantizer is not None:
        step = np.broadcast_to(model.activation(layer.input_quantizer).scale * scale, bias.shape)
    return Expected(q, scale, bias, step)


def _double(model: QuantizedModel, name: str) -> NDArray[np.float64] | None:
    """Return a float tensor of the finalized model in double precision, None where there is none of that name."""
    tensor = model.tensors.get(name)
    return None if tensor is None or tensor.dtype.kind != "f" else tensor.astype(np.float64)


def onnx_weight_problems(proto: onnx.ModelProto, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs between an ONNX file's weights and the finalized model, layer by layer."""
    stored = StoredWeights(proto)
    for layer in model.layers:
        expected = expected_in_onnx(model, layer)
        place = stored.integers_of(layer.name)
        try:
            found = stored.value(place)
        except ValueError as error:
            yield layer.name, str(error)
            continue
        # A narrow native type holds the same numbers; everything else has the finalized model's own type.
        narrow = found.dtype.name in ("int2", "int4")
        yield from ((layer.name, text) for text in array_differences(
            found.astype(expected.q.dtype) if narrow else found, expected.q, "integers"))  # fmt: skip
        uses = stored.uses(place)
        if not uses:
            yield layer.name, "nothing dequantizes its integers"
        for use in uses:
            if use.problem is not None:
                yield layer.name, use.problem
                continue
            yield from ((layer.name, text) for text in _scale_problems(use, stored, expected))
            users = stored.users(use.output)
            if not users:
                yield layer.name, "nothing computes with its integers"
            if len(uses) + len(users) > 2:
                continue  # a parameter used several times: only the model's code says which use has which bias
            for user in users:
                yield from ((layer.name, text) for text in _bias_problems(user, stored, expected))


def _scale_problems(use: WeightUse, stored: StoredWeights, expected: Expected) -> list[str]:
    """Return what is wrong with the scale that a weight is multiplied by."""
    scale = stored.constant(use.scale)
    if scale is None:
        return ["the scale is no constant"]
    if expected.scale.ndim and use.axis is None:  # one factor a channel, written so that it broadcasts
        wanted = expected.scale.reshape(-1, *[1] * (expected.q.ndim - 1))
        return array_differences(scale, wanted, "scale")
    problems = array_differences(scale, expected.scale, "scale")
    if expected.scale.ndim and use.axis != 0:
        problems.append(f"the scales lie on axis {use.axis}, not on the output channels")
    if use.zero_point and ((zero := stored.constant(use.zero_point)) is None or zero.any()):
        problems.append("the zero point is not zero")
    return problems


def _bias_problems(  # noqa: PLR0911 - a problem each
    user: onnx.NodeProto, stored: StoredWeights, expected: Expected
) -> list[str]:
    """Return what is wrong with the bias of the operator that uses a layer's weight."""
    if user.op_type not in ("Conv", "Gemm", "ConvTranspose") or expected.bias is None:
        return []
    if len(user.input) < 3 or not user.input[2]:
        return [] if not expected.bias.any() else ["the bias is missing"]
    name = user.input[2]
    source = stored.maker(name)
    if source is None or source.op_type != "DequantizeLinear":
        bias = stored.tensor(name)
        if bias is None:
            return ["the bias is no constant"]
        return array_differences(bias, expected.bias.astype(np.float32), "bias")
    if expected.bias_step is None:
        return ["the bias is quantized, although the layer's input is not"]
    integers, step = (stored.tensor(constant) for constant in source.input[:2])
    if integers is None or step is None:
        return ["the bias is no constant"]
    wanted = np.rint(expected.bias / expected.bias_step.astype(np.float64))
    return array_differences(integers, wanted.astype(np.int32), "bias") + array_differences(
        step, expected.bias_step, "bias scale"
    )


def onnx_activation_problems(proto: onnx.ModelProto, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs between an ONNX file's activation quantizers and the finalized model's."""
    stored = StoredWeights(proto)
    makers = {output: node for node in proto.graph.node for output in node.output}
    for quantizer in model.activations:
        node = makers.get(quantizer.name)
        chain = []
        while node is not None and node.op_type in ("DequantizeLinear", "Clip", "QuantizeLinear"):
            chain.append(node)
            node = makers.get(node.input[0]) if node.op_type != "QuantizeLinear" else None
        kinds = [n.op_type for n in chain]
        # Eight bits may be clipped, too, by an activation function with an upper bound.
        clipped = ["Clip"] if quantizer.bits < 8 or "Clip" in kinds else []
        if kinds != ["DequantizeLinear", *clipped, "QuantizeLinear"]:
            yield quantizer.name, f"its quantizer is missing (found: {' ← '.join(kinds) or 'nothing'})"
            continue
        wanted: dict[int, NDArray[Any]] = {
            1: np.asarray(quantizer.scale),
            2: np.asarray(quantizer.zero_point, np.uint8),
        }
        for node in (chain[0], chain[-1]):
            for position, what in ((1, "scale"), (2, "zero point")):
                found = stored.constant(node.input[position]) if len(node.input) > position else None
                problems = [f"no {what}"] if found is None else array_differences(found, wanted[position], what)
                yield from ((quantizer.name, f"{node.op_type}: {text}") for text in problems)
        for clip in chain[1:-1]:
            bounds = [stored.constant(name) for name in clip.input[1:3]]
            low, high = (None if b is None else int(b) for b in bounds)
            # Narrower bounds are those of a clipping activation function; the layers level compares their values.
            if low is None or high is None or not 0 <= low < high < 2**quantizer.bits:
                yield quantizer.name, f"the integers are not clipped to {quantizer.bits} bits"


def named_tensors(proto: onnx.ModelProto, model: QuantizedModel) -> dict[str, NDArray[Any]]:
    """Return the float tensors of a graph that have the names of tensors of the finalized model.

    Left out are BatchNorms that are folded into a layer, that layer's bias, and biases that are stored as integers:
    they are compared with the layer.
    """
    folded = {layer.batch_norm for layer in model.layers if layer.batch_norm}
    folded_into = {f"{layer.name.removesuffix('weight')}bias" for layer in model.layers if layer.batch_norm}
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        if tensor.name in model.tensors and tensor.name not in folded_into
        and tensor.name.rpartition(".")[0] not in folded and tensor.data_type == onnx.TensorProto.FLOAT
    }  # fmt: skip


def onnx_tensor_problems(
    found: dict[str, NDArray[Any]], model: QuantizedModel, epsilons: Mapping[str, float] | None = None
) -> Iterator[Problem]:
    """Yield what differs between such tensors, from `named_tensors`, and the finalized model's.

    Args:
        found: the tensors.
        model: the finalized model.
        epsilons: ε of every BatchNorm: torch folds one into a layer in front of it that is not quantized.
    """
    for name, array in found.items():
        problems = array_differences(array, model.tensors[name], "values")
        if problems and not is_folded(name, array, model.tensors, epsilons or {}):
            yield from ((name, text) for text in problems)


def csq_problems(tensors: dict[str, NDArray[Any]], metadata: str, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs between a `.csq` file's decoded tensors and the finalized model's."""
    wanted, wanted_metadata = to_tensors(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            yield name, "is not in the file"
        elif name not in wanted:
            yield name, "is in the file, but not in the finalized model"
        else:
            yield from ((name, text) for text in array_differences(tensors[name], wanted[name], "values"))
    if metadata != wanted_metadata:
        yield "metadata", "differ from the finalized model's"


def array_differences(found: NDArray[Any], wanted: NDArray[Any], what: str) -> list[str]:
    """Compare two arrays bit for bit: type, shape and every value."""
    if found.dtype != wanted.dtype:
        return [f"{what}: {found.dtype} instead of {wanted.dtype}"]
    if found.shape != wanted.shape:
        return [f"{what}: shape {list(found.shape)} instead of {list(wanted.shape)}"]
    different = np.asarray((_bytes(found) != _bytes(wanted)).any(-1))
    if not different.any():
        return []
    place = tuple(int(i) for i in np.unravel_index(int(different.argmax()), different.shape))
    first = f" at {list(place)}" if place else ""
    count = int(different.sum())
    return [f"{what}: {count} of {found.size} differ, first{first}: {found[place]} instead of {wanted[place]}"]


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array's bytes: [*shape, bytes of a value]."""
    return np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.itemsize)
