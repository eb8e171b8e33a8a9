"""Sums of layers in the C inference, on a grid or in float, and what a run of the reference computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.c_numbers import CGrid, Ints, factors


@dataclass(frozen=True)
class Weight:
    """A quantized weight, as the graph has it."""

    name: str
    q: NDArray[Any]
    scale: NDArray[np.float32]
    bias: NDArray[np.float64] | None


@dataclass
class LayerNumbers:
    """What one layer must hold: integers [channels, kernel…, inputs], biases, multipliers, shifts; factors in float.

    What a layer does not have is 0: those that compute by integers alone have no `step`, others no multiplier or shift.
    """

    name: str
    filters: NDArray[np.int64]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    step: NDArray[np.float32]


@dataclass
class Computed:
    """What a run computed.

    Attributes:
        places: integers of each activation quantizer, uint8 [N, …], and bytes of what each layer of floats returns,
            uint8 [N, …, 4], in order.
        layers: every run of a layer, in order.
        output: float32 [N, …].
        floats: layers whose results were computed in float, by identity, and these.
        forced: integers, or bytes of floats, that replace those of a place for what comes after it.
        repeated: layers of floats that ran more than once, which are no places.
    """

    places: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    layers: list[LayerNumbers] = field(default_factory=list)
    output: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    floats: dict[int, tuple[Any, NDArray[np.float32]]] = field(default_factory=dict)
    forced: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LayerSums:
    """A layer's sums before their quantizer.

    Attributes:
        name: the parameter.
        filters: integers as they lie in flash.
        bias: in units of the sums.
        sums: with the bias, [N, …].
        source: the input's grid.
        scale: of each channel.
        shape: the shape that numbers of channels have beside `sums`.
        computed: told each run of the layer: there is one for each quantizer of its result.
    """

    name: str
    filters: NDArray[np.int64]
    bias: NDArray[np.int64]
    sums: Ints
    source: CGrid
    scale: NDArray[np.float32]
    shape: list[int]
    computed: Computed

    @property
    def unit(self) -> NDArray[np.float32]:
        """Value of one unit of the sums, by channel."""
        unit: NDArray[np.float32] = np.float32(self.source.scale) * self.scale
        return unit

    def plus(self, bias: NDArray[Any]) -> LayerSums:
        """Return the sums with a bias in float."""
        steps = np.rint(bias.astype(np.float64) / self.unit.astype(np.float64)).astype(np.int64)
        return replace(self, bias=self.bias + steps, sums=self.sums + steps.reshape(self.shape))

    def with_bias(self, bias: NDArray[Any]) -> LayerSums | NDArray[np.float32]:
        """Return the sums with a bias, or the result in float where it is not a whole number of their units."""
        steps = bias.astype(np.float64) / self.unit.astype(np.float64)
        if (np.abs(steps - np.rint(steps)) <= 1e-3 + np.abs(steps) * 2.0**-22).all():  # both in float32
            return self.plus(bias)
        return np.asarray(self.as_float() + bias.astype(np.float32).reshape(self.shape))

    def on(self, grid: CGrid) -> Ints:
        """Return the result on a grid, centered."""
        ratios = np.float64(self.source.scale) * self.scale.astype(np.float64) / np.float64(grid.scale)
        if grid.in_float:
            self._ran(step=ratios.astype(np.float32))
            return grid.scaled(self.sums, ratios.reshape(self.shape))
        shift = factors(ratios.max())[1]  # that of the largest factor, for all channels
        multiplier = np.rint(np.ldexp(ratios, int(shift))).astype(np.int64)
        shift = np.broadcast_to(shift, multiplier.shape)
        self._ran(multiplier, shift)
        return grid.rounded(self.sums * multiplier.reshape(self.shape), shift.reshape(self.shape))

    def as_float(self) -> NDArray[np.float32]:
        """Return the result in float (section 2); it is computed once."""
        made = self.computed.floats
        if id(self) not in made:
            self._ran(step=self.unit)
            made[id(self)] = self, self.sums.astype(np.float32) * self.unit.reshape(self.shape)
        return made[id(self)][1]

    def _ran(self, multiplier: Any = 0, shift: Any = 0, step: Any = 0) -> None:
        count = len(self.bias)
        multiplier, shift = (np.broadcast_to(np.asarray(one, np.int64), count) for one in (multiplier, shift))
        step = np.broadcast_to(np.asarray(step, np.float32), count)
        total = self.filters.reshape(len(self.filters), -1).sum(axis=1)
        stored = self.bias - self.source.zero_point * total
        self.computed.layers.append(LayerNumbers(self.name, self.filters, stored, multiplier, shift, step))
