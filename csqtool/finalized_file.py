"""The finalized model on disk: a safetensors file that any safetensors reader opens.

For each quantized parameter P, tensor ``P`` holds q and ``P_scale`` its float32 scale. Activation quantizers
stand as ``NAME_scale`` and ``NAME_zero_point`` (NAME ends in ``.input`` or ``.output``). The metadata key
``csqtool`` holds one JSON document; the file is a pure function of the `QuantizedModel`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.files import read_bytes, write_bytes
from csqtool.quantized_model import FORMAT_VERSION, ActivationQuantizer, QuantizedLayer, QuantizedModel

METADATA_KEY = "csqtool"


def to_tensors(model: QuantizedModel) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the tensors and the metadata document (JSON text) that describe `model` completely."""
    tensors: dict[str, NDArray[Any]] = dict(model.tensors)
    for layer in model.layers:
        tensors[layer.name] = layer.q
        tensors[f"{layer.name}_scale"] = np.asarray(layer.scale, np.float32)
    for quantizer in model.activations:
        tensors[f"{quantizer.name}_scale"] = np.asarray(quantizer.scale, np.float32)
        tensors[f"{quantizer.name}_zero_point"] = np.asarray(quantizer.zero_point, np.uint8)
    document = {
        "format_version": FORMAT_VERSION,
        **model.info,
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
    return tensors, json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_tensors(tensors: dict[str, NDArray[Any]], metadata: str, *, where: str) -> QuantizedModel:
    """Return the `QuantizedModel` that `to_tensors` described.

    Args:
        tensors: every tensor of the file, by name.
        metadata: the JSON text under the metadata key ``csqtool``.
        where: the file's name, for messages.

    Raises:
        FormatError: the document and the tensors do not describe a quantized model.
    """
    try:
        document = json.loads(metadata)
        if not isinstance(document, dict):
            raise FormatError(f"{where}: the csqtool metadata is not a JSON object")
        version = document.pop("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(f"{where}: format version {version}, this csqtool reads {FORMAT_VERSION}")
        rest = dict(tensors)
        layers = []
        for entry in document.pop("layers"):
            layer = QuantizedLayer(
                name=entry["name"],
                q=rest.pop(entry["name"]),
                scale=_scalar(rest.pop(f"{entry['name']}_scale"), np.float32),
                mask=entry["mask"],
                input_quantizer=entry["input_quantizer"],
                batch_norm=entry["batch_norm"],
            )
            for key in ("bit_width", "precision", "elements"):
                if getattr(layer, key) != entry[key]:
                    raise FormatError(
                        f"{where}: {layer.name}: {key} is {getattr(layer, key)}, the metadata say {entry[key]}"
                    )
            if list(layer.shape) != entry["shape"] or float(layer.scale) != entry["scale"]:
                raise FormatError(f"{where}: {layer.name}: shape or scale differ from the metadata")
            layers.append(layer)
        activations = tuple(
            ActivationQuantizer(
                name=entry["name"],
                scale=_scalar(rest.pop(f"{entry['name']}_scale"), np.float32),
                zero_point=int(_scalar(rest.pop(f"{entry['name']}_zero_point"), np.uint8)),
                bits=int(entry["bits"]),
            )
            for entry in document.pop("activations")
        )
        tied = document.pop("tied")
        return QuantizedModel(tuple(layers), activations, rest, tied, document)
    except KeyError as error:
        raise FormatError(f"{where}: {error.args[0]} is missing") from error
    except FormatError as error:
        raise error if str(error).startswith(where) else FormatError(f"{where}: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{where}: damaged csqtool metadata: {error}") from error


def _scalar(array: NDArray[Any], dtype: Any) -> Any:
    if array.shape != () or array.dtype != dtype:
        raise FormatError(f"expected one {np.dtype(dtype).name}, got {array.dtype}{list(array.shape)}")
    return array[()]


def to_bytes(model: QuantizedModel) -> bytes:
    """Return the finalized file of `model`; the same model always gives the same bytes."""
    return serialize(*to_tensors(model))


def serialize(tensors: dict[str, NDArray[Any]], metadata: str) -> bytes:
    """Return the finalized file that holds these tensors and this metadata document."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(t) if t.ndim else t for name, t in tensors.items()}
    # One metadata key: the library keeps metadata in a hash map, several keys would come in random order.
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


def parse_finalized(content: bytes, *, where: str) -> QuantizedModel:
    """Return the `QuantizedModel` in the bytes of a finalized file; `where` names it in messages."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{where} is not a safetensors file: {error}") from error
    # The library's in-memory loader drops the metadata; the header is JSON behind an 8-byte length.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {}).get(METADATA_KEY)
    if metadata is None:
        raise FormatError(f"{where} was not written by csqtool finalize (no csqtool metadata)")
    return from_tensors(tensors, metadata, where=where)
