"""What a `.csq` file packed with --float16 must contain: the finalized model with rounded float32 tensors.

It is computed from the finalized model alone, without the code of `csqtool.float16`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.finalized_file import to_tensors
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import Problem, array_differences, expected_in_onnx

KEY = "float16"


def half_origin(metadata: str) -> str | None:
    """Return the SHA-256 of the finalized file that was rounded; None if none was."""
    try:
        return str(json.loads(metadata)[KEY]["finalized_sha256"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def half_problems(tensors: dict[str, NDArray[Any]], metadata: str, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs from the finalized model by more than rounding to float16.

    Integers, scales and zero points must be equal bit for bit. A float32 tensor must be unchanged or rounded to
    float16; a bias on the integer grid may have moved to the nearest grid point, by half a step at most.
    """
    wanted, wanted_metadata = to_tensors(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            yield name, "is not in the file"
        elif name not in wanted:
            yield name, "is in the file, but not in the finalized model"
        elif name not in model.tensors or wanted[name].dtype != np.float32:
            yield from ((name, text) for text in array_differences(tensors[name], wanted[name], "values"))
    rounded = {
        name: tensors[name] if name in tensors and _same_form(tensors[name], value) else value
        for name, value in model.tensors.items()
    }
    steps = _steps(dataclasses.replace(model, tensors=rounded))
    for name, value in model.tensors.items():
        if value.dtype == np.float32 and name in tensors:
            yield from ((name, text) for text in _rounding_problems(tensors[name], value, steps.get(name)))
    if _plain(metadata) != _plain(wanted_metadata):
        yield "metadata", "differ from the finalized model's in more than float16 and the metric"


def _same_form(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return found.shape == wanted.shape and found.dtype == wanted.dtype


def _rounding_problems(found: NDArray[Any], wanted: NDArray[np.float32], step: NDArray[np.float64] | None) -> list[str]:
    if not _same_form(found, wanted):
        return array_differences(found, wanted, "values")
    with np.errstate(over="ignore"):
        half = wanted.astype(np.float16).astype(np.float32)
    if not array_differences(found, half, "") or not array_differences(found, wanted, ""):
        return []
    if step is None:
        return array_differences(found, half, "values, rounded to float16")
    # Float32 arithmetic on both sides of the comparison adds some units in the last place.
    moved = np.abs(found.astype(np.float64) - wanted)
    limit = 0.501 * step + 1e-6 * np.abs(wanted)
    return [] if (moved <= limit).all() else [f"a bias moved by {np.max(moved / step):.2g} steps of the integer grid"]


def _steps(model: QuantizedModel) -> dict[str, NDArray[np.float64]]:
    """Return the step of the integer grid for each bias that is on one, by tensor name."""
    steps = {}
    for layer in model.layers:
        step = expected_in_onnx(model, layer).bias_step
        if step is not None:
            name = f"{layer.batch_norm}.bias" if layer.batch_norm else layer.name.removesuffix("weight") + "bias"
            steps[name] = step.astype(np.float64)
    return steps


def _plain(metadata: str) -> Any:
    """Return the metadata without the parts that rounding changes; None if they are no JSON object."""
    try:
        document = json.loads(metadata)
        metrics = document.get("metrics", {})
        return {k: v for k, v in document.items() if k not in (KEY, "metrics")}, metrics.get("name")
    except (ValueError, AttributeError, RecursionError):
        return None
