"""The finalized model on disk: a safetensors file that any safetensors reader opens.

For each quantized parameter P, tensor ``P`` holds q and ``P_scale`` its float32 scale. Activation quantizers are
stored as ``NAME_scale`` and ``NAME_zero_point`` (NAME ends in ``.input`` or ``.output``). The metadata key
``csqtool`` holds one JSON document; the file is a pure function of the `QuantizedModel`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.files import read_bytes, unique_keys, write_bytes
from csqtool.model_info import ModelInfo
from csqtool.quantized_model import FORMAT_VERSION, ActivationQuantizer, QuantizedLayer, QuantizedModel

METADATA_KEY = "csqtool"
MOST_NESTED = 500  # objects and lists in one another in the metadata
EPSILON_KEY = "batch_norm_epsilon"  # of the document: BatchNorm's module name to its epsilon


def to_tensors(model: QuantizedModel) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the tensors and the metadata document (JSON text) that describe `model` completely.

    Raises:
        FormatError: `model.info` cannot be written as JSON.
    """
    tensors: dict[str, NDArray[Any]] = dict(model.tensors)
    for layer in model.layers:
        tensors[layer.name] = layer.q
        tensors[f"{layer.name}_scale"] = np.asarray(layer.scale, np.float32)
    for quantizer in model.activations:
        tensors[f"{quantizer.name}_scale"] = np.asarray(quantizer.scale, np.float32)
        tensors[f"{quantizer.name}_zero_point"] = np.asarray(quantizer.zero_point, np.uint8)
    document = {
        "format_version": FORMAT_VERSION,
        **_with_epsilons(model),
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "precision": layer.precision,
                "mask": layer.mask,
                "bit_width": layer.bit_width,
                "scale": float(layer.scale),
                "elements": layer.elements,
                "input_quantizer": layer.input_quantizer,
                "batch_norm": layer.batch_norm,
            }
            for layer in model.layers
        ],
        "activations": [{"name": a.name, "bits": a.bits} for a in model.activations],
        "tied": dict(model.tied),
    }
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()  # names may contain lone surrogates
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"what the model records cannot be written as JSON: {error}") from error
    return tensors, text


def from_tensors(tensors: dict[str, NDArray[Any]], metadata: str, *, where: str) -> QuantizedModel:
    """Return the `QuantizedModel` that `to_tensors` described.

    Args:
        tensors: every tensor of the file, by name.
        metadata: the JSON text under the metadata key ``csqtool``.
        where: the file's name, for messages.

    Raises:
        FormatError: document and tensors do not describe a quantized model.
    """
    document = parse_document(metadata, where=where)
    try:
        version = document.pop("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise FormatError(f"{where}: format version {version}, this csqtool reads {FORMAT_VERSION}")
        rest = dict(tensors)
        epsilons = document.get(EPSILON_KEY)
        layers = tuple(_layer(entry, rest, epsilons) for entry in _list(document.pop("layers"), "layers"))
        activations = tuple(_activation(entry, rest) for entry in _list(document.pop("activations"), "activations"))
        tied = document.pop("tied")
        if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
            raise FormatError(f"tied is {tied!r:.100}, expected an object of names")
        return QuantizedModel(layers, activations, rest, tied, ModelInfo(document))
    except KeyError as error:
        raise FormatError(f"{where}: {error.args[0]!r:.300} is missing") from error
    except FormatError as error:
        raise error if str(error).startswith(where) else FormatError(f"{where}: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{where}: damaged csqtool metadata: {error}") from error


def _is_deeper(document: Any, limit: int) -> bool:
    """Tell whether a document has more than `limit` objects and lists in one another; deep ones need no deep stack."""
    level = [document]
    for _ in range(limit):
        inside = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [value for part in inside for value in part]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def parse_document(metadata: str, *, where: str) -> dict[str, Any]:
    """Return the metadata document: an object without repeated keys, infinite numbers or lone surrogates.

    JSON parsers read these in different ways, and `to_tensors` could not write them again.

    Raises:
        FormatError: the text is not such an object.
    """

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"the number {text:.40} is not finite")
        return value

    try:
        document = json.loads(metadata, object_pairs_hook=unique_keys, parse_constant=number, parse_float=number)
        if _is_deeper(document, MOST_NESTED):  # Python 3.14 reads what earlier ones refuse
            raise ValueError(f"more than {MOST_NESTED} objects and lists in one another")
        json.dumps(document, ensure_ascii=False).encode()  # escapes may yield lone surrogates
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the csqtool metadata are not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: the csqtool metadata are not a JSON object")
    return document


# The exact types of the values: true is not 1 and 3.0 not 3, or writing them again would give another file.
_LAYER = {
    "name": (str,), "shape": (list,), "precision": (int,), "mask": (str,), "bit_width": (int,), "scale": (float,),
    "elements": (int,), "input_quantizer": (str, type(None)), "batch_norm": (str, type(None)),
}  # fmt: skip
_ACTIVATION = {"name": (str,), "bits": (int,)}


def _checked(entry: Any, types: Mapping[str, tuple[type, ...]], what: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise FormatError(f"{what} is {entry!r:.100}, expected an object")
    if unknown := entry.keys() - types.keys():
        raise FormatError(f"{what} has an unknown key {min(unknown)!r:.100}")
    for key, allowed in types.items():
        if type(entry[key]) not in allowed:
            raise FormatError(f"{what}: {key} is {entry[key]!r:.100}, expected {allowed[0].__name__}")
    return entry


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{what} is {value!r:.100}, expected a list")
    return value


def _layer(entry: Any, rest: dict[str, NDArray[Any]], epsilons: Any) -> QuantizedLayer:
    """Return the layer that an entry of ``layers`` describes; its tensors are removed from `rest`."""
    entry = _checked(entry, _LAYER, "a layer")
    layer = QuantizedLayer(
        name=entry["name"],
        q=_taken(rest, entry["name"]),
        scale=_scalar(rest, f"{entry['name']}_scale", np.float32),
        mask=entry["mask"],
        input_quantizer=entry["input_quantizer"],
        batch_norm=entry["batch_norm"],
        batch_norm_epsilon=_epsilon(epsilons, entry["batch_norm"]),
    )
    for key in ("bit_width", "precision", "elements"):
        if getattr(layer, key) != entry[key]:
            raise FormatError(f"{layer.name}: {key} is {getattr(layer, key)}, the metadata say {entry[key]}")
    if [(type(d), d) for d in entry["shape"]] != [(int, d) for d in layer.shape]:
        raise FormatError(f"{layer.name}: shape is {list(layer.shape)}, the metadata say {entry['shape']!r:.100}")
    if float(layer.scale) != entry["scale"]:
        raise FormatError(f"{layer.name}: scale is {float(layer.scale)}, the metadata say {entry['scale']}")
    return layer


def _epsilon(recorded: Any, batch_norm: str | None) -> float | None:
    """Return a BatchNorm's epsilon; None if the document does not record it, which the format does not require."""
    value: Any = recorded.get(batch_norm) if isinstance(recorded, dict) else None
    if type(value) not in (int, float):  # not bool
        return None
    try:
        epsilon = float(value)
    except OverflowError:
        return None
    return epsilon if epsilon >= 0 else None


def _with_epsilons(model: QuantizedModel) -> dict[str, Any]:
    """Return the document of `model.info` with the layers' epsilons under their key.

    Entries with the same value are left unchanged, so that an unchanged file is written again bit for bit.
    """
    document = dict(model.info.document)
    recorded = document.get(EPSILON_KEY)
    known = {layer.batch_norm: layer.batch_norm_epsilon for layer in model.layers if layer.batch_norm is not None}
    if all(_epsilon(recorded, name) == epsilon for name, epsilon in known.items()):
        return document
    entries = dict(recorded) if isinstance(recorded, dict) else {}
    for name, epsilon in known.items():
        if epsilon is None:
            entries.pop(name, None)
        elif _epsilon(entries, name) != epsilon:
            entries[name] = float(epsilon)
    document[EPSILON_KEY] = entries
    return document


def _activation(entry: Any, rest: dict[str, NDArray[Any]]) -> ActivationQuantizer:
    entry = _checked(entry, _ACTIVATION, "an activation quantizer")
    return ActivationQuantizer(
        name=entry["name"],
        scale=_scalar(rest, f"{entry['name']}_scale", np.float32),
        zero_point=int(_scalar(rest, f"{entry['name']}_zero_point", np.uint8)),
        bits=entry["bits"],
    )


def _taken(rest: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in rest:
        raise FormatError(f"there is no tensor {name!r:.300}, which the metadata name")
    return rest.pop(name)


def _scalar(rest: dict[str, NDArray[Any]], name: str, dtype: Any) -> Any:
    array = _taken(rest, name)
    if array.shape != () or array.dtype != dtype:
        raise FormatError(f"{name}: expected one {np.dtype(dtype).name}, got {array.dtype}{list(array.shape)}")
    return array[()]


def to_bytes(model: QuantizedModel) -> bytes:
    """Return the finalized file of `model`; the same model always gives the same bytes."""
    return serialize(*to_tensors(model))


def serialize(tensors: dict[str, NDArray[Any]], metadata: str) -> bytes:
    """Return the finalized file that holds these tensors and this metadata document."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(t) if t.ndim else t for name, t in tensors.items()}
    # One metadata key: the library keeps metadata in a hash map and would write several keys in random order.
    return bytes(save(contiguous, metadata={METADATA_KEY: metadata}))


def write_finalized(model: QuantizedModel, path: Path) -> None:
    """Write `model` to a safetensors file, atomically."""
    write_bytes(path, to_bytes(model))


def read_finalized(path: Path) -> QuantizedModel:
    """Read a finalized model.

    Raises:
        InputError: the file is missing or cannot be read.
        FormatError: it is no safetensors file, or not one that csqtool finalized.
    """
    return parse_finalized(read_bytes(path), where=str(path))


def read_exact(path: Path) -> QuantizedModel:
    """Read a finalized model whose file `to_bytes` reproduces bit for bit, as packing requires.

    Raises:
        InputError: the file is missing or cannot be read.
        FormatError: it is no finalized model, or csqtool would write it with other bytes.
    """
    content = read_bytes(path)
    model = parse_finalized(content, where=str(path))
    if to_bytes(model) != content:
        raise FormatError(
            f"{path}: its bytes are not those that csqtool finalize writes for this model; "
            "it was changed or written by another program, and unpack could not restore it"
        )
    return model


def parse_finalized(content: bytes, *, where: str) -> QuantizedModel:
    """Return the `QuantizedModel` in the bytes of a finalized file; `where` names it in messages."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{where} is not a safetensors file: {error}") from error
    # The library's in-memory loader drops the metadata; the header is JSON after an 8-byte length.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {}).get(METADATA_KEY)
    if metadata is None:
        raise FormatError(f"{where} was not written by csqtool finalize (no csqtool metadata)")
    return from_tensors(tensors, metadata, where=where)
