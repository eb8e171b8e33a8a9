"""The inference profile: a finalized model without what a device does not need, its BatchNorms folded.

`folded` gives the tensors and metadata of a file, `restored` a finalized model with the folded values from them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.channels import Record, decode_records, encode_record, rounded_scales
from csqtool.csq.rans import StreamError
from csqtool.errors import ExportError, FormatError
from csqtool.finalized_file import parse_document
from csqtool.folding import BATCH_NORM_PARTS, bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.model_info import ModelInfo
from csqtool.quantized_model import (
    MAX_BIT_WIDTH,
    ActivationQuantizer,
    IntegerArray,
    QuantizedLayer,
    QuantizedModel,
    smallest_dtype,
    twos_complement_bits,
)

FORMAT_VERSION = 2  # of the metadata
BEGINNING = f'{{"format_version":{FORMAT_VERSION},'  # of the metadata of an inference file, and of no other
CHANNELS, ACTIVATIONS = ":channels", ":activations"
COUNTER = "num_batches_tracked"
KEPT = ("input_shape", "inputs", "outputs")  # of the description of the model's origin, beside the data's
ORIGIN = "folded_from"  # key of a restored model: the SHA-256 of the finalized file


@dataclass(frozen=True)
class Folded:
    """The content of an inference file.

    Attributes:
        tensors: integers, the streams, and all other tensors, by name.
        bit_widths: of the layers, by name.
        metadata: the JSON text.
    """

    tensors: dict[str, NDArray[Any]]
    bit_widths: dict[str, int]
    metadata: str


def is_inference(metadata: str) -> bool:
    """Tell whether metadata are those of an inference file."""
    return metadata.startswith(BEGINNING)


def folded(model: QuantizedModel, *, half: bool = False) -> Folded:
    """Return what the inference file of a model holds.

    Args:
        model: the finalized model.
        half: round float biases and all other float32 tensors to float16, where float16 has the range.

    Raises:
        ExportError: a tensor has the name of a stream, or the description cannot be written as JSON.
        FormatError: a BatchNorm to fold has tensors of wrong shapes.
    """
    rest = dict(model.tensors)
    if taken := {CHANNELS, ACTIVATIONS} & {*rest, *(layer.name for layer in model.layers)}:
        raise ExportError(f"csq: an inference file has a tensor of its own called {min(taken)!r}")
    users, doubled = Counter(layer.batch_norm for layer in model.layers), _second_names(model.tensors)
    integers: dict[str, IntegerArray] = {}
    records: dict[str, Record] = {}
    described = []
    for layer in model.layers:
        entry: dict[str, Any] = {"name": layer.name}
        if layer.input_quantizer is not None:
            entry["input_quantizer"] = layer.input_quantizer
        if layer.batch_norm is not None:
            entry["batch_norm"] = layer.batch_norm
            if layer.batch_norm_epsilon is not None:
                entry["epsilon"] = float(layer.batch_norm_epsilon)
        # A tensor under two names stays what it is: a rebuilt module would load only one of two values.
        tied = layer.name in model.tied.values()
        bias = None if tied else _own_bias(layer, rest)
        alone = not tied and users[layer.batch_norm] == 1 and doubled.isdisjoint((layer.batch_norm, _bias_name(layer)))
        q = _turned(layer, model.tensors) if layer.batch_norm is not None and alone else None
        integers[layer.name] = layer.q if q is None else q
        records[layer.name] = _plain_record(layer, model, bias) if q is None else _folded_record(layer, model)
        if q is not None:
            for part in (*BATCH_NORM_PARTS, COUNTER):
                del rest[f"{layer.batch_norm}.{part}"]
        if bias is not None:
            entry["bias"] = True
            del rest[_bias_name(layer)]
        described.append(entry)
    if half:
        # What else decides on a grid of integer biases stays exact, or the biases would leave the grid.
        exact = {name for x in model.layers if x.input_quantizer for name in
                 (_bias_name(x), *(f"{x.batch_norm}.{part}" for part in BATCH_NORM_PARTS))}  # fmt: skip
        rest = {name: tensor if name in exact else _rounded(tensor) for name, tensor in rest.items()}
        records = {name: replace(r, bias=_halved(r.bias)) for name, r in records.items()}
    ordered = sorted(records, key=str.encode)
    rest |= integers
    rest[CHANNELS] = np.concatenate([encode_record(records[name]) for name in ordered])
    if model.activations:
        rest[ACTIVATIONS] = np.concatenate([_activation_words(a) for a in model.activations])
    return Folded(rest, {n: twos_complement_bits(q) for n, q in integers.items()}, _document(model, described))


def _document(model: QuantizedModel, layers: list[dict[str, Any]]) -> str:
    origin = {key: model.info.document[key] for key in KEPT if key in model.info.document}
    if model.info.inputs is not None and "inputs" in origin:
        origin.pop("input_shape", None)  # the shape of the first input
    if model.info.data is not None:
        data = model.info.document["data"]
        origin["data"] = {key: data[key] for key in ("task", "preprocessing") if data.get(key) is not None}
    names = [a.name for a in model.activations]
    document = {
        "format_version": FORMAT_VERSION, "layers": layers, "activations": names, "tied": dict(model.tied), **origin,
    }  # fmt: skip
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"csq: the model's description is not valid JSON in UTF-8: {error}") from error


def _turned(layer: QuantizedLayer, tensors: Mapping[str, NDArray[Any]]) -> IntegerArray | None:
    """Return the integers with the sign of γ/σ, channel by channel; None if the layer's BatchNorm cannot be folded."""
    parts = [f"{layer.batch_norm}.{part}" for part in BATCH_NORM_PARTS]
    counter = tensors.get(f"{layer.batch_norm}.{COUNTER}")
    if layer.batch_norm_epsilon is None or counter is None or counter.dtype != np.int64 or counter.ndim:
        return None
    if any(name not in tensors or tensors[name].dtype != np.float32 for name in parts):
        return None
    own = _own_bias(layer, tensors)
    if own is None and _bias_name(layer) in tensors:
        return None
    norm = read_batch_norm(layer, tensors)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        factor, bias = norm.factor, norm.effective_bias(own).astype(np.float32)
        folded_scale = fold_scale(layer.scale, factor)
    if not (np.isfinite(factor) & np.isfinite(folded_scale.scale) & np.isfinite(bias)).all():
        return None
    sign = folded_scale.sign.reshape(-1, *[1] * (layer.q.ndim - 1))
    q = layer.q.astype(np.int16) * sign
    return smallest_dtype(q) if twos_complement_bits(q) <= MAX_BIT_WIDTH else None


def _second_names(tensors: Mapping[str, NDArray[Any]]) -> set[str]:
    """Return the BatchNorms and the biases, by name, that are probably also there under another name.

    They equal each other bit for bit. A bias of zeros is left out: zeros are what folding leaves.
    """
    norms = [name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")]
    groups: dict[tuple[Any, ...], list[str]] = {}
    for norm in norms:
        parts = [tensors.get(f"{norm}.{part}") for part in BATCH_NORM_PARTS]
        groups.setdefault(tuple(_content(part) for part in parts), []).append(norm)
    for name, tensor in tensors.items():
        if name.endswith("bias") and tensor.any():
            groups.setdefault(_content(tensor), []).append(name)
    return {name for same in groups.values() if len(same) > 1 for name in same}


def _content(tensor: NDArray[Any] | None) -> tuple[Any, ...]:
    return () if tensor is None else (tensor.dtype, tensor.shape, tensor.tobytes())


def _bias_name(layer: QuantizedLayer) -> str:
    """Return the name that the bias of a layer's module has; empty if the layer is not called a weight."""
    return f"{layer.name.removesuffix('weight')}bias" if layer.name.endswith("weight") else ""


def _own_bias(layer: QuantizedLayer, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    """Return the bias of a layer's module if it has one value a channel, which are all finite."""
    bias = tensors.get(_bias_name(layer))
    fits = bias is not None and bias.dtype == np.float32 and bias.shape == layer.shape[:1] and np.isfinite(bias).all()
    return bias if fits else None


def _folded_record(layer: QuantizedLayer, model: QuantizedModel) -> Record:
    norm = read_batch_norm(layer, model.tensors)
    exact = fold_scale(layer.scale, norm.factor).scale
    bias = norm.effective_bias(_own_bias(layer, model.tensors))
    if layer.input_quantizer is not None:
        step = bias_step(model.activation(layer.input_quantizer).scale, rounded_scales(exact))
        steps = integer_bias(bias, step)
        if steps is not None:
            return Record(exact, steps)
    return Record(exact, bias.astype(np.float32))


def _plain_record(layer: QuantizedLayer, model: QuantizedModel, bias: NDArray[np.float32] | None) -> Record:
    """Return the record of a layer without a folded BatchNorm: its scale, and its bias as integers if that is exact."""
    scale = np.asarray(layer.scale, np.float32)
    if bias is not None and layer.input_quantizer is not None:
        step = bias_step(model.activation(layer.input_quantizer).scale, np.full(bias.shape, layer.scale))
        steps = integer_bias(bias, step)
        if steps is not None and (steps.astype(np.float32) * step).tobytes() == bias.tobytes():
            return Record(scale, steps)
    return Record(scale, bias)


def _rounded(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a float32 tensor rounded to float16, if that has its range; any other as it is."""
    if tensor.dtype != np.float32:
        return tensor
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16).astype(np.float32)
    return half if np.array_equal(np.isfinite(half), np.isfinite(tensor)) else tensor


def _halved(bias: NDArray[Any] | None) -> NDArray[Any] | None:
    if bias is None or bias.dtype != np.float32:
        return bias
    with np.errstate(over="ignore"):
        half = bias.astype(np.float16)
    return half if np.isfinite(half).all() else bias


def _activation_words(quantizer: ActivationQuantizer) -> NDArray[np.uint16]:
    """Return three words: the scale as float32, then the zero point and the bits."""
    stored = np.asarray(quantizer.scale, "<f4").tobytes() + bytes([quantizer.zero_point, quantizer.bits])
    return np.frombuffer(stored, "<u2").astype(np.uint16)


def restored(
    tensors: Mapping[str, NDArray[Any]],
    quantized: Mapping[str, int],
    metadata: str,
    finalized_sha256: str,
    *,
    where: str,
) -> QuantizedModel:
    """Return a finalized model with the folded values.

    A folded BatchNorm comes back as one of mean 0 and deviation 1, whose γ and β are the folded ones; the layer's scale
    is then a power of two. Folding the result again gives the values of the file.

    Args:
        tensors: all tensors of an inference file, by name.
        quantized: those of them that are layers, in the order of the table, with the bits that they are stored at.
        metadata: its metadata.
        finalized_sha256: of the finalized file that it was made from.
        where: the file's metadata, for messages.

    Raises:
        FormatError: tensors and metadata do not describe a model.
    """
    document = parse_document(metadata, where=where)
    try:
        return _Restoring(tensors, quantized, document, finalized_sha256).model()
    except KeyError as error:
        raise FormatError(f"{where}: {error.args[0]!r:.300} is missing") from error
    except (FormatError, StreamError) as error:
        raise FormatError(f"{where}: {error}") from error


class _Restoring:
    """The parts of a model, taken from a file one after the other; what is left are its other tensors."""

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], quantized: Mapping[str, int], document: dict[str, Any], origin: str
    ) -> None:
        self.rest = dict(tensors)
        self.quantized = quantized
        self.document = document
        self.origin = origin

    def model(self) -> QuantizedModel:
        document = self.document
        document.pop("format_version")
        layers, names, tied = (_typed(document.pop(key), kind, key) for key, kind in
                               (("layers", list), ("activations", list), ("tied", dict)))  # fmt: skip
        if not all(isinstance(name, str) for name in tied.values()):
            raise FormatError(f"tied is {tied!r:.100}, expected an object of names")
        described = [_described(entry) for entry in layers]
        if sorted(entry["name"] for entry in described) != sorted(self.quantized):
            raise FormatError("the layers of the metadata are not the tensors of integers")
        for name, bits in self.quantized.items():
            if bits != (least := twos_complement_bits(self.rest[name])):
                raise FormatError(f"{name}: its integers need {least} bits and are stored at {bits}")
        activations = self._activations(names)
        steps = {a.name: a.scale for a in activations}
        channels = [self.rest[name].shape[0] if self.rest[name].ndim else 1 for name in self.quantized]
        words = self._words(CHANNELS)
        records = dict(zip(self.quantized, decode_records(words, channels), strict=True))
        found = tuple(self._layer(entry, records[entry["name"]], steps) for entry in described)
        info = ModelInfo({**document, ORIGIN: self.origin})
        return QuantizedModel(found, activations, self.rest, tied, info)

    def _words(self, name: str) -> NDArray[np.uint16]:
        words = self.rest.pop(name)
        if words.dtype != np.uint16 or words.ndim != 1:
            raise FormatError(f"{name} is {words.dtype}{list(words.shape)}, expected a row of words")
        return words

    def _activations(self, names: list[Any]) -> tuple[ActivationQuantizer, ...]:
        if not names and ACTIVATIONS not in self.rest:
            return ()
        words = self._words(ACTIVATIONS)
        if words.size != 3 * len(names) or not all(isinstance(name, str) for name in names):
            raise FormatError(f"{words.size} words of activations, the metadata have {len(names)} names")
        scales = np.frombuffer(words.reshape(-1, 3)[:, :2].astype("<u2").tobytes(), "<f4")
        last = words[2::3]
        return tuple(
            ActivationQuantizer(name, np.float32(scale), int(word) & 255, int(word) >> 8)
            for name, scale, word in zip(names, scales, last, strict=True)
        )

    def _layer(self, entry: dict[str, Any], record: Record, steps: Mapping[str, np.float32]) -> QuantizedLayer:
        q = self.rest.pop(entry["name"])
        norm, bias = entry.get("batch_norm"), record.bias
        layer = QuantizedLayer(entry["name"], q, np.float32(1), _mask(q), entry.get("input_quantizer"), norm,
                               entry.get("epsilon"))  # fmt: skip
        if bias is not None and bias.dtype == np.int32:
            if (step := steps.get(layer.input_quantizer or "")) is None:
                raise FormatError(f"{layer.name}: integer biases without a quantized input")
            with np.errstate(over="ignore", invalid="ignore"):
                bias = (bias.astype(np.float32) * bias_step(step, record.scale)).astype(np.float32)
            if not np.isfinite(bias).all():
                raise FormatError(f"{layer.name}: biases beyond float32")
        elif bias is not None:
            bias = bias.astype(np.float32)
        if record.scale.ndim:
            epsilon = layer.batch_norm_epsilon
            if norm is None or epsilon is None or bias is None:
                raise FormatError(f"{layer.name}: a scale for each channel needs a BatchNorm, its epsilon and biases")
            layer = replace(layer, scale=_power_of_two(record.scale))
            self._put_batch_norm(norm, epsilon, record.scale / layer.scale, bias)
            bias = np.zeros_like(bias)
        else:
            layer = replace(layer, scale=np.float32(record.scale))
        if "bias" in entry:
            if bias is None or not _bias_name(layer):
                raise FormatError(f"{layer.name}: the metadata say it has a bias, which is not there")
            self._put(_bias_name(layer), bias)
        elif bias is not None and not record.scale.ndim:
            raise FormatError(f"{layer.name}: biases of a layer that has none")
        return layer

    def _put_batch_norm(self, name: str, epsilon: float, ratio: NDArray[np.float32], beta: NDArray[np.float32]) -> None:
        """Add a BatchNorm whose γ/σ is `ratio`."""
        variance = np.float32(max(0.0, 1 - epsilon))
        with np.errstate(over="ignore"):
            gamma = (ratio.astype(np.float64) * np.sqrt(np.float64(variance) + epsilon)).astype(np.float32)
        if not np.isfinite(gamma).all():
            raise FormatError(f"{name}: an epsilon of {epsilon:g} takes it beyond float32")
        values = (gamma, beta, np.zeros_like(beta), np.full_like(beta, variance))
        for part, value in zip(BATCH_NORM_PARTS, values, strict=True):
            self._put(f"{name}.{part}", value)
        self._put(f"{name}.{COUNTER}", np.array(0, np.int64))

    def _put(self, name: str, value: NDArray[Any]) -> None:
        if name in self.rest:
            raise FormatError(f"{name}: a tensor that follows from a layer's scales and biases")
        self.rest[name] = value


def _power_of_two(scales: NDArray[np.float32]) -> np.float32:
    """Return the largest power of two that is not above the largest scale."""
    return np.float32(np.ldexp(0.5, max(int(np.frexp(scales.max())[1]), -124)))


def _mask(q: IntegerArray) -> str:
    """Return the planes that integers need: the search's are not in the file."""
    largest = max(abs(int(q.min())), abs(int(q.max())), 1)
    return ("1" * largest.bit_length()).rjust(8, "0")


_ENTRY = {"name": (str,), "input_quantizer": (str,), "batch_norm": (str,), "epsilon": (float,), "bias": (bool,)}


def _described(entry: Any) -> dict[str, Any]:
    entry = _typed(entry, dict, "a layer")
    for key, value in entry.items():
        if key not in _ENTRY:
            raise FormatError(f"a layer has an unknown key {key!r:.100}")
        if type(value) not in _ENTRY[key] or value is False:
            raise FormatError(f"a layer: {key} is {value!r:.100}, expected {_ENTRY[key][0].__name__}")
    if "name" not in entry:
        raise FormatError("a layer has no name")
    return dict(entry)


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise FormatError(f"{what} is {value!r:.100}, expected {'an object' if kind is dict else 'a list'}")
    return value
