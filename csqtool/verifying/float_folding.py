"""BatchNorm that torch's own export folds into a layer that stays in float: its values, worked out in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from csqtool.verifying.rounded_constants import is_rounded

Tensors = Mapping[str, NDArray[Any]]


def batch_norm_epsilons(module: nn.Module) -> dict[str, float]:
    """Return ε of every BatchNorm of a module, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: norm.eps for name, norm in module.named_modules() if isinstance(norm, kind)}


def is_folded(name: str, found: NDArray[Any], tensors: Tensors, epsilons: Mapping[str, float]) -> bool:
    """Tell whether a weight or bias holds its own values with one of the model's BatchNorms folded in.

    Which BatchNorm follows the layer is a question of the graph, which the structure level answers.

    Args:
        name: the tensor.
        found: its values in the file.
        tensors: the finalized model's float tensors.
        epsilons: ε of each BatchNorm.
    """
    return any(is_rounded(found, wanted) for wanted in _foldings(name, tensors, epsilons))


def _foldings(name: str, tensors: Tensors, epsilons: Mapping[str, float]) -> Iterator[NDArray[np.float64]]:
    layer, _, part = name.rpartition(".")
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.dtype.kind != "f" or part not in ("weight", "bias"):
        return
    for norm, epsilon in epsilons.items():
        parts = [tensors.get(f"{norm}.{p}") for p in ("weight", "bias", "running_mean", "running_var")]
        if any(p is None for p in parts):
            continue
        gamma, beta, mean, variance = (p.astype(np.float64) for p in parts if p is not None)
        slope = gamma / np.sqrt(variance + epsilon)
        for axis in range(min(2, weight.ndim)):  # ConvTranspose has its output channels on axis 1
            if weight.shape[axis] != len(slope):
                continue
            if part == "weight":
                yield weight * slope.reshape(-1, *[1] * (weight.ndim - 1 - axis))
            else:
                yield beta + (tensors.get(name, np.zeros(len(slope))) - mean) * slope
