"""All levels of verification for an inference file: folded BatchNorms, rounded scales, nothing of the model's history.

What the file must hold is computed from the finalized model alone. The network that is run is the finalized model's
module with the file's values in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.folding import BATCH_NORM_PARTS
from csqtool.quantized_model import QuantizedLayer, QuantizedModel, smallest_dtype
from csqtool.verifying.csq_channels import (
    ACTIVATIONS,
    BEGINNING,
    CHANNELS,
    StoredLayer,
    stored_activations,
    stored_layers,
)
from csqtool.verifying.csq_contexts import BadStream
from csqtool.verifying.csq_decoder import graph_part
from csqtool.verifying.outputs import both_sides, compare_outputs, compare_task
from csqtool.verifying.subject import Subject
from csqtool.verifying.weights import Expected, Problem, array_differences, expected_in_onnx

Tensors = dict[str, NDArray[Any]]
FOLDED = (*BATCH_NORM_PARTS, "num_batches_tracked")  # of a BatchNorm that is folded
DESCRIBED = ("input_shape", "inputs", "outputs")  # what metadata may repeat of the finalized model's


def is_inference(metadata: str) -> bool:
    """Tell whether metadata are those of an inference file."""
    return metadata.startswith(BEGINNING)


@dataclass(frozen=True)
class _Content:
    """What an inference file holds.

    Attributes:
        tensors: all tensors but the streams.
        stored: scales and biases by layer.
        activations: scale, zero point and bits of each activation.
        document: the metadata.
    """

    tensors: Tensors
    stored: Mapping[str, StoredLayer]
    activations: list[tuple[np.float32, int, int]]
    document: dict[str, Any]

    @classmethod
    def of(cls, tensors: Tensors, metadata: str) -> _Content:
        """Return the content of a file.

        Raises:
            BadStream: a stream is not there or breaks a rule.
            FormatError: the metadata are no such document.
        """
        try:
            document = json.loads(metadata)
            names = {entry["name"] for entry in document["layers"]}
            again = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise FormatError(f"the metadata are no description of an inference file: {error}") from error
        if again != metadata:
            raise FormatError("the metadata are not written as csqtool writes them: readers may differ on them")
        layers = [(name, t) for name, t in tensors.items() if name in names and t.dtype in (np.int8, np.int16)]
        channels = [tensor.shape[0] if tensor.ndim else 1 for _, tensor in layers]
        decoded = stored_layers(_bytes(tensors, CHANNELS), channels)
        stored = dict(zip((name for name, _ in layers), decoded, strict=True))
        activations = stored_activations(_bytes(tensors, ACTIVATIONS)) if ACTIVATIONS in tensors else []
        rest = {name: tensor for name, tensor in tensors.items() if name not in (CHANNELS, ACTIVATIONS)}
        return cls(rest, stored, activations, document)


def _bytes(tensors: Tensors, name: str) -> bytes:
    stream = tensors.get(name)
    if stream is None or stream.dtype != np.uint16 or stream.ndim != 1:
        raise BadStream(f"there is no stream {name} of 16-bit words")
    return stream.astype("<u2").tobytes()


def inference_problems(tensors: Tensors, metadata: str, model: QuantizedModel) -> list[Problem]:
    """Return what differs between a decoded inference file and the finalized model that it was made from.

    Args:
        tensors: the file's, in the order of its table.
        metadata: its metadata.
        model: the finalized model.
    """
    try:
        content = _Content.of(tensors, metadata)
    except (BadStream, FormatError) as error:
        return [(CHANNELS, str(error))]
    return _problems(content, model)


@np.errstate(all="ignore")  # whatever numbers a file has, they differ or they do not
def _problems(content: _Content, model: QuantizedModel) -> list[Problem]:
    parts = (_layer_problems, _activation_problems, _tensor_problems, _document_problems)
    return [problem for part in parts for problem in part(content, model)]


def verify_inference(subject: Subject, tensors: Tensors, metadata: str, recorded: str) -> None:
    """Check a decoded inference file.

    Args:
        subject: the file, whose checksums have been checked.
        tensors: its tensors, in the order of its table.
        metadata: its metadata.
        recorded: the SHA-256 of a finalized file that it records.
    """
    report, model = subject.report, subject.model
    subject.check_origin(recorded)
    if graph_part(subject.content, where=report.file)[0] is not None:
        report.add("integrity", "graph", False, "the file holds an ONNX graph, which an inference file has not")
    try:
        content = _Content.of(tensors, metadata)
    except (BadStream, FormatError) as error:
        report.add("weights", "scales and biases", False, str(error), CHANNELS)
        return
    off = max((_off(content.stored[x.name], x, model) for x in model.layers if x.name in content.stored), default=0.0)
    words = f"equal, BatchNorm folded; scales off by at most {off:.1e} of their value"
    subject.add_problems("weights", "all tensors", _problems(content, model), len(tensors), holds=words)
    both = both_sides(subject, lambda: _rebuilt(content, model), "folded model")
    if both is None:
        return
    # Rounded scales move outputs as other rounding of activations does, and are held to the same thresholds.
    compare_outputs(both.found, both.wanted, both.judge, False, "folded model in PyTorch", "off", report)
    compare_task(both.found, both.wanted, both.targets, both.judge, report)
    report.add("structure", "graph", True, "the file holds none: its tensors run in the module's own code")


def _expected(stored: StoredLayer, layer: QuantizedLayer, model: QuantizedModel) -> Expected:
    """Return the values that a layer must have, with its BatchNorm folded if the file says that it is."""
    if stored.scale.ndim:
        return expected_in_onnx(model, layer)
    bias = model.tensors.get(_bias_name(layer))
    return Expected(layer.q, np.asarray(layer.scale), None if bias is None else bias.astype(np.float64), None)


def _off(stored: StoredLayer, layer: QuantizedLayer, model: QuantizedModel) -> float:
    """Return the largest relative difference of a layer's scales; infinity where they cannot be compared."""
    if stored.scale.ndim and layer.batch_norm is None:
        return math.inf
    wanted = _expected(stored, layer, model).scale
    if stored.scale.shape != wanted.shape:
        return math.inf
    return float(np.abs(stored.scale.astype(np.float64) / wanted - 1).max())


def _layer_problems(content: _Content, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs in integers, scales and biases."""
    for layer in model.layers:
        stored = content.stored.get(layer.name)
        if stored is None:
            yield layer.name, "is not in the file"
            continue
        if stored.scale.ndim and layer.batch_norm is None:
            yield layer.name, "has a scale for each channel, but no BatchNorm"
            continue
        expected = _expected(stored, layer, model)
        yield from ((layer.name, text) for text in _values_differ(content.tensors[layer.name], stored, expected))
        step = None if layer.input_quantizer is None else expected_step(layer, model, stored.scale)
        yield from ((layer.name, text) for text in _bias_differs(stored, expected.bias, step))


def expected_step(layer: QuantizedLayer, model: QuantizedModel, scale: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the value of one unit of an integer bias: the steps of input and weight, multiplied in float32."""
    assert layer.input_quantizer is not None
    step: NDArray[np.float32] = np.asarray(model.activation(layer.input_quantizer).scale * scale, np.float32)
    return step.astype(np.float64)


def _values_differ(q: NDArray[Any], stored: StoredLayer, expected: Expected) -> Iterator[str]:
    yield from array_differences(smallest_dtype(q), smallest_dtype(expected.q), "integers")
    if stored.scale.shape != expected.scale.shape:
        yield f"scales of shape {list(stored.scale.shape)} instead of {list(expected.scale.shape)}"
        return
    far = (np.abs(stored.scale.astype(np.float64) - expected.scale) > stored.error).reshape(-1)
    if far.any():
        at = int(far.argmax())
        found, wanted, error = (float(x.reshape(-1)[at]) for x in (stored.scale, expected.scale, stored.error))
        first = f"first at {at}: {found:.7g}, not {wanted:.7g} ± {error:.1e}"
        yield f"scale: {int(far.sum())} of {far.size} differ, {first}"


def _bias_differs(
    stored: StoredLayer, wanted: NDArray[np.float64] | None, step: NDArray[np.float64] | None
) -> list[str]:
    found = stored.bias
    if found is None:
        # Without a folded BatchNorm, the bias may be a tensor of its own, which is compared as such.
        return ["the bias is missing"] if stored.scale.ndim else []
    if wanted is None or found.shape != wanted.shape:
        return ["the bias is not that of the model"]
    if found.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array_differences(found, wanted.astype(found.dtype), "bias")
    if step is None:
        return ["the bias is an integer, although the layer's input is not quantized"]
    return array_differences(found.astype(np.int64), np.rint(wanted / step).astype(np.int64), "bias")


def _activation_problems(content: _Content, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs in activation quantizers."""
    if content.document.get("activations") != [a.name for a in model.activations]:
        yield "activations", "are not those of the finalized model, in its order"
    elif len(content.activations) != len(model.activations):
        yield ACTIVATIONS, f"{len(content.activations)} quantizers, {len(model.activations)} names"
    else:
        for quantizer, found in zip(model.activations, content.activations, strict=True):
            if found != (wanted := (quantizer.scale, quantizer.zero_point, quantizer.bits)):
                yield quantizer.name, f"scale, zero point and bits are {found} instead of {wanted}"


def _tensor_problems(content: _Content, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs in tensors that are no layer's, of which float32 ones may be rounded to float16."""
    gone, layers = _replaced(content, model), {layer.name for layer in model.layers}
    wanted = model.tensors.keys() - gone
    for name in sorted(wanted | content.tensors.keys()):
        if name not in content.tensors:
            yield name, "is not in the file"
        elif name not in wanted:
            if name not in layers:
                yield name, "is in the file, but not in the finalized model"
        else:
            found, tensor = content.tensors[name], model.tensors[name]
            if not (tensor.dtype == np.float32 and _is_half_of(found, tensor)):
                yield from ((name, text) for text in array_differences(found, tensor, "values"))


def _is_half_of(found: NDArray[Any], tensor: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16).astype(np.float32)
    return not array_differences(found, half, "")


def _replaced(content: _Content, model: QuantizedModel) -> set[str]:
    """Return the finalized model's tensors that a file holds as a layer's scales and biases."""
    gone = set[str]()
    for layer in model.layers:
        stored = content.stored.get(layer.name)
        if stored is not None and stored.scale.ndim:
            gone |= {f"{layer.batch_norm}.{part}" for part in FOLDED}
        if stored is not None and stored.bias is not None and _bias_name(layer) in model.tensors:
            gone.add(_bias_name(layer))
    return gone


def _document_problems(content: _Content, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs in the metadata, which a reader rebuilds a model by."""
    document, origin = dict(content.document), model.info.document
    layers: list[dict[str, Any]] = []
    gone = _replaced(content, model)
    for layer in model.layers:
        known = {"input_quantizer": layer.input_quantizer, "batch_norm": layer.batch_norm,
                 "epsilon": layer.batch_norm_epsilon, "bias": _bias_name(layer) in gone or None}  # fmt: skip
        layers.append({"name": layer.name, **{key: value for key, value in known.items() if value is not None}})
    if document.pop("layers") != layers:
        yield "metadata", "describe other layers than the finalized model"
    if document.pop("tied", None) != dict(model.tied):
        yield "metadata", "tie other tensors than the finalized model"
    data, known_data = document.pop("data", {}), origin.get("data", {})
    known_data = {key: known_data.get(key) for key in ("task", "preprocessing")} if isinstance(known_data, dict) else {}
    if not isinstance(data, dict) or any(key not in known_data or known_data[key] != data[key] for key in data):
        yield "metadata", "describe other data than the finalized model's"
    for key in document.keys() - {"format_version", "activations"}:
        if key not in DESCRIBED or document[key] != origin.get(key):
            yield "metadata", f"{key!r:.100} differs from the finalized model's"


@np.errstate(all="ignore")  # outputs that are not finite fail
def _rebuilt(content: _Content, model: QuantizedModel) -> QuantizedModel:
    """Return the finalized model with the file's values in the places of its own.

    A folded BatchNorm becomes one of mean 0 and variance 1 − ε, whose γ is the channels' scales over the largest.

    Raises:
        FormatError: the values make no model.
    """
    gone = _replaced(content, model)
    tensors = {name: content.tensors.get(name, value) for name, value in model.tensors.items() if name not in gone}
    layers = []
    for layer in model.layers:
        if layer.name not in content.stored:
            raise FormatError(f"{layer.name} is not in the file")
        stored = content.stored[layer.name]
        q, bias = smallest_dtype(content.tensors[layer.name]), stored.bias
        if bias is not None and bias.dtype.kind == "i":
            if layer.input_quantizer is None:
                raise FormatError(f"{layer.name}: integer biases without a quantized input")
            bias = bias * expected_step(layer, model, stored.scale)
        bias = None if bias is None else bias.astype(np.float32)
        largest = np.float32(stored.scale.max())
        layers.append(dataclasses.replace(layer, q=q, scale=largest))
        if stored.scale.ndim:
            if layer.batch_norm is None or bias is None:
                raise FormatError(f"{layer.name}: a scale for each channel without a BatchNorm and its biases")
            epsilon = layer.batch_norm_epsilon or 0.0
            variance = np.full(bias.shape, max(1 - epsilon, 0.0), np.float32)
            gamma = stored.scale.astype(np.float64) / largest * np.sqrt(variance.astype(np.float64) + epsilon)
            values = (gamma.astype(np.float32), bias, np.zeros_like(bias), variance, np.array(0, np.int64))
            tensors |= {f"{layer.batch_norm}.{part}": np.asarray(x) for part, x in zip(FOLDED, values, strict=True)}
            bias = np.zeros_like(bias)
        if _bias_name(layer) in gone and bias is not None:
            tensors[_bias_name(layer)] = bias
    return dataclasses.replace(model, layers=tuple(layers), tensors=tensors)


def _bias_name(layer: QuantizedLayer) -> str:
    """Return the name of the bias in a layer's module; empty if the layer is not called a weight."""
    return f"{layer.name[: -len('weight')]}bias" if layer.name.endswith("weight") else ""
