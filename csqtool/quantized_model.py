"""`QuantizedModel`, the intermediate representation: numpy only, no input or output, no framework.

The quantized weight of a layer is exactly ``float32(q) * scale``. Everything that is written, shipped or verified
is checked against this product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.model_info import ModelInfo
from csqtool.notebook import page

FORMAT_VERSION = 1
MAX_BIT_WIDTH = 9  # eight kept planes give -255 ... 255: nine bits in two's complement

IntegerArray = NDArray[np.int8] | NDArray[np.int16]


def twos_complement_bits(q: NDArray[Any]) -> int:
    """Return the smallest two's-complement width (bits) that holds every integer of `q`; at least 1."""
    if not q.size:
        return 1
    # Besides the sign bit, a negative v needs as many bits as ~v.
    return 1 + max((~v if v < 0 else v).bit_length() for v in (int(q.min()), int(q.max())))


def smallest_dtype(q: NDArray[Any]) -> IntegerArray:
    """Return `q` as int8, or as int16 if its values need it."""
    return q.astype(np.int8) if twos_complement_bits(q) <= 8 else q.astype(np.int16)


class LayerIntegers(NamedTuple):
    """The integers of one layer, the result of training.

    Attributes:
        q: signed integers, int8, or int16 if they need it, in the weight's shape.
        scale: Δ > 0; the weight is ``float32(q) * scale``.
        mask: planes kept, most significant first, such as ``00000111``.
    """

    q: IntegerArray
    scale: np.float32
    mask: str


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized parameter.

    Attributes:
        name: the parameter, such as ``conv1.weight``.
        q: signed integers (int8, int16 where needed), in the parameter's shape.
        scale: Δ > 0; the weight is ``float32(q) * scale``.
        mask: planes the search kept, most significant first, such as ``00000111``.
        input_quantizer: name of the activation quantizer on the layer's input, if there is one.
        batch_norm: module name of the BatchNorm that directly follows and folds into the scale, if any.
        batch_norm_epsilon: its ε; None if there is no such BatchNorm, or the file does not record it.
    """

    name: str
    q: IntegerArray
    scale: np.float32
    mask: str
    input_quantizer: str | None = None
    batch_norm: str | None = None
    batch_norm_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.q.dtype not in (np.int8, np.int16):
            raise FormatError(f"{self.name}: integers must be int8 or int16, got {self.q.dtype}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise FormatError(f"{self.name}: scale must be finite and above zero, got {self.scale}")
        if not self.mask or set(self.mask) - {"0", "1"}:
            raise FormatError(f"{self.name}: mask must be zeros and ones, got {self.mask!r}")
        if self.bit_width > MAX_BIT_WIDTH:
            raise FormatError(f"{self.name}: integers need {self.bit_width} bits, at most {MAX_BIT_WIDTH}")
        if self.batch_norm_epsilon is not None:
            if self.batch_norm is None:
                raise FormatError(f"{self.name}: a BatchNorm's epsilon without the BatchNorm")
            if not (np.isfinite(self.batch_norm_epsilon) and self.batch_norm_epsilon >= 0):
                raise FormatError(
                    f"{self.name}: BatchNorm's epsilon must be finite and not negative, got {self.batch_norm_epsilon}"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.q.shape

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.q.size

    @property
    def precision(self) -> int:
        """Planes kept: the paper's bit count, without sign."""
        return self.mask.count("1")

    @property
    def bit_width(self) -> int:
        """Two's-complement bits that the integers need."""
        return twos_complement_bits(self.q)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the integers packed at `bit_width` bits."""
        return (self.elements * self.bit_width + 7) // 8

    @property
    def entropy(self) -> float:
        """Empirical zero-order entropy of the integers, in bits a weight."""
        counts = np.unique(self.q, return_counts=True)[1]
        p = counts / self.q.size
        return float(-(p * np.log2(p)).sum()) + 0.0

    def dequantized(self) -> NDArray[np.float32]:
        """Return the weight: float32(q)·Δ."""
        return self.q.astype(np.float32) * self.scale


@dataclass(frozen=True)
class ActivationQuantizer:
    """Static uniform quantizer of one activation: clip(round(x / scale) + zero_point, 0, 2^bits − 1).

    Attributes:
        name: the place, ``MODULE.output`` or ``MODULE.input``.
        scale: step size, float32, above zero.
        zero_point: the integer that represents 0.0.
        bits: 2 … 8.
    """

    name: str
    scale: np.float32
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise FormatError(f"{self.name}: scale must be finite and above zero, got {self.scale}")
        if not 2 <= self.bits <= 8:
            raise FormatError(f"{self.name}: activation bits must be 2 to 8, got {self.bits}")
        if not 0 <= self.zero_point <= self.largest:
            raise FormatError(f"{self.name}: zero point must be 0 to {self.largest}, got {self.zero_point}")

    @property
    def largest(self) -> int:
        """The largest integer, 2^bits − 1."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class QuantizedModel:
    """A finalized model.

    Attributes:
        layers: the quantized parameters, in the model's order.
        activations: the activation quantizers, in the order of the forward pass.
        tensors: every other parameter and buffer, by name.
        tied: other names of quantized parameters: alias to name.
        info: the recorded description of its origin.
    """

    layers: tuple[QuantizedLayer, ...]
    activations: tuple[ActivationQuantizer, ...]
    tensors: Mapping[str, NDArray[Any]]
    tied: Mapping[str, str] = field(default_factory=dict)
    info: ModelInfo = field(default_factory=ModelInfo)

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names:
            raise FormatError("a quantized model needs at least one quantized layer")
        taken = [*self.tensors, *names, *(f"{name}_scale" for name in names)]
        taken += [f"{a.name}_{part}" for a in self.activations for part in ("scale", "zero_point")]
        if duplicates := [name for name, count in Counter(taken).items() if count > 1]:
            raise FormatError(f"repeated tensor names: {', '.join(sorted(duplicates))}")
        if dangling := set(self.tied.values()) - set(names):
            raise FormatError(f"tied to layers that do not exist: {', '.join(sorted(dangling))}")
        quantizers = {a.name for a in self.activations}
        for layer in self.layers:
            if layer.input_quantizer is not None and layer.input_quantizer not in quantizers:
                raise FormatError(f"{layer.name}: unknown activation quantizer {layer.input_quantizer}")
        epsilons: dict[str | None, float | None] = {}
        for layer in self.layers:
            if layer.batch_norm_epsilon != epsilons.setdefault(layer.batch_norm, layer.batch_norm_epsilon):
                raise FormatError(f"{layer.name}: another layer has another epsilon of {layer.batch_norm}")

    @property
    def elements(self) -> int:
        """Number of quantized weights."""
        return sum(layer.elements for layer in self.layers)

    @property
    def average_precision(self) -> float:
        """Planes kept, averaged over weight elements."""
        return sum(layer.precision * layer.elements for layer in self.layers) / self.elements

    @property
    def average_bit_width(self) -> float:
        """Two's-complement bits, averaged over weight elements: the cost of a weight in a densely packed file."""
        return sum(layer.bit_width * layer.elements for layer in self.layers) / self.elements

    @property
    def layer_mean_precision(self) -> float:
        """Planes kept, averaged over layers: the paper's count."""
        return sum(layer.precision for layer in self.layers) / len(self.layers)

    def layer(self, name: str) -> QuantizedLayer:
        """Return the layer called `name`, following ties."""
        return self._layers_by_name[self.tied.get(name, name)]

    def activation(self, name: str) -> ActivationQuantizer:
        """Return the activation quantizer called `name`."""
        return self._activations_by_name[name]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a row a layer."""
        averages = f"{self.average_precision:.3f} planes and {self.average_bit_width:.3f} bits a weight on average"
        rows = [
            (layer.name, layer.precision, layer.mask, layer.bit_width, f"{layer.entropy:.2f}", layer.elements)
            for layer in self.layers
        ]
        heads = ("layer", "precision", "mask", "bit width", "entropy", "weights")
        return page("Quantized model", [f"{self.elements:,} quantized weights: {averages}"], heads, rows)

    @cached_property
    def _layers_by_name(self) -> dict[str, QuantizedLayer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _activations_by_name(self) -> dict[str, ActivationQuantizer]:
        return {quantizer.name: quantizer for quantizer in self.activations}
