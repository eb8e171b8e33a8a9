"""Constants that torch computes while it captures a graph: equal up to rounding is equal.

A BatchNorm that follows a layer that is not quantized is folded by torch's own optimizer, in float32, in an order of
operations that changes between its versions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

ROUNDING = 8 * float(np.finfo(np.float32).eps)  # a handful of operations, each with half an ε


def rounded_constants(found: onnx.ModelProto, wanted: onnx.ModelProto, exact: Set[bytes]) -> dict[bytes, NDArray[Any]]:
    """Return which tensors of a file stand for which computed ones of the capture: their bytes, to the latter.

    Args:
        found: the file's graph.
        wanted: the capture.
        exact: bytes of the tensors that are not computed, and must be equal bit for bit.
    """
    computed: dict[tuple[int, ...], list[NDArray[np.float32]]] = defaultdict(list)
    for tensor in wanted.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim and values.tobytes() not in exact:
                computed[values.shape].append(values)
    pairs: dict[bytes, NDArray[Any]] = {}
    for tensor in found.graph.initializer:
        shape = tuple(tensor.dims)
        if tensor.data_type != onnx.TensorProto.FLOAT or shape not in computed:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        near = [candidate for candidate in computed[shape] if is_rounded(values, candidate)]
        if near:  # several may be: gains of layers that training hardly changed
            nearest = min(near, key=lambda candidate: int((candidate != values).sum()))
            pairs.setdefault(values.tobytes(), nearest)
    return pairs


def is_rounded(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Tell whether two arrays are equal up to the rounding of a handful of float32 operations.

    A sum's rounding is relative to its terms, which are no larger than the largest value by orders of magnitude.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return False
    limit = ROUNDING * np.maximum(np.abs(wanted), 0.1 * np.abs(wanted).max(initial=0.0))
    return bool((np.abs(found.astype(np.float64) - wanted) <= limit).all())
