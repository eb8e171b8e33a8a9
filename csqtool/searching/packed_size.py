"""Sizes in the packed file: each layer at given planes, and the parts that do not depend on planes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from torch import Tensor

from csqtool import csq
from csqtool.integers import reduced
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.scheme import integers_at

# Bytes by which a layer's integers, and its numbers in the metadata, may grow in training.
SLACK = 32


class PackedSizes:
    """Bytes of layers in the packed file, in its smallest encoding, when they are rounded to given planes.

    They depend on the entropy of the rounded weights, which training changes.

    Args:
        weights: the layers' weights, by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self._measured: dict[tuple[str, tuple[int, ...]], int] = {}

    def __call__(self, name: str, exponents: tuple[int, ...]) -> int:
        """Return the bytes of a layer at these planes; only the distances between them matter."""
        key = name, tuple(b - exponents[0] for b in exponents)
        if key not in self._measured:
            q, scale = integers_at(self._weights[name], exponents)
            integers, _ = reduced(q.cpu().numpy().astype(np.int64), np.float32(scale.cpu().numpy()))
            self._measured[key] = csq.integer_bytes(integers)
        return self._measured[key]


def packed_bytes(model: QuantizedModel, profile: str = "archival") -> int:
    """Return the bytes of the packed file of a model, archival or for ``inference``."""
    return len(csq.pack(model, inference=profile == "inference"))


def fixed_bytes(model: QuantizedModel, profile: str = "archival") -> int:
    """Return the bytes of a model's packed file without the layers' integers."""
    return packed_bytes(model, profile) - sum(csq.integer_bytes(layer.q) for layer in model.layers)


def as_trained(model: QuantizedModel, *, aliases: Collection[str]) -> QuantizedModel:
    """Return an untrained model whose tensors take as many bytes as trained ones.

    Args:
        model: the untrained model.
        aliases: tensors that are another name of a layer's weight; they are left out, as they are not stored.
    """
    # An untrained BatchNorm holds ones and zeros, which the packed file stores in half the bytes of trained values.
    # And untrained ones equal each other, which trained ones do only if they are one.
    tensors = {name: np.full_like(tensor, 1 / 3 + i / 4096) if tensor.dtype == np.float32 else tensor
               for i, (name, tensor) in enumerate(model.tensors.items()) if name not in aliases}  # fmt: skip
    return dataclasses.replace(model, tensors=tensors)
