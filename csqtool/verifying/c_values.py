"""The values between the nodes of a C inference: on a grid, through a table, or before their quantizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.c_float_layers import FloatSums
from csqtool.verifying.c_floats import Floats, evaluate
from csqtool.verifying.c_numbers import CGrid, Ints
from csqtool.verifying.c_sums import LayerSums, Weight


class NotCoveredError(Exception):
    """The graph holds something that the C inference does not define."""


@dataclass(frozen=True)
class Steps:
    """Quantized values: centered integers [N, …] on a grid."""

    d: Ints
    grid: CGrid


@dataclass(frozen=True)
class Curve:
    """A function of quantized values: `table[q]` is its value for the integer q of `source`; or computed in float."""

    source: Steps
    table: NDArray[np.float64]
    in_float: Callable[[], NDArray[np.float32]]

    def on(self, grid: CGrid) -> Ints:
        """Return centered integers on a grid (section 5.1)."""
        with np.errstate(all="ignore"):
            steps = np.rint(np.nan_to_num(self.table / np.float64(grid.scale), posinf=1e9, neginf=-1e9))
        return np.asarray(grid.clipped(steps)[self.source.d + self.source.grid.zero_point])


@dataclass(frozen=True)
class Pending:
    """A result before its quantizer.

    Attributes:
        finish: returns centered integers on a grid.
        bounds: of ReLU and Clip after it, in order.
        post: rearrangements of the integers after it.
        layer: the layer whose sums it is.
        in_float: computes it in float, before bounds and rearrangements; None for a layer, or where there is no form.
    """

    finish: Callable[[CGrid], Ints]
    bounds: tuple[tuple[float | None, float | None], ...] = ()
    post: tuple[Callable[[Ints], Ints], ...] = ()
    layer: LayerSums | FloatSums | None = None
    in_float: Callable[[], NDArray[np.float32]] | None = None

    def on(self, grid: CGrid) -> Ints:
        """Return centered integers on a grid."""
        for low, high in reversed(self.bounds):  # the exporter meets the last one first
            grid = grid.bounded(low, high)
        found = self.finish(grid)
        for change in self.post:
            found = change(found)
        return found

    def as_float(self) -> NDArray[np.float32]:
        """Return the values in float (section 5.2)."""
        if self.layer is None and self.in_float is None:
            raise NotCoveredError("a sum, mean or joined value in float")
        found: NDArray[Any] = self.layer.as_float() if self.layer else self.in_float()  # type: ignore[misc]
        for low, high in self.bounds:
            found = evaluate("Clip", [found, *(None if b is None else np.float32(b) for b in (low, high))], {})
        for change in self.post:
            found = change(found)
        return np.asarray(found, np.float32)


def in_float(value: Any) -> Any:
    """Return an operand in float32."""
    if isinstance(value, Floats):
        return value.x
    if isinstance(value, Steps):
        return value.d.astype(np.float32) * value.grid.scale
    if isinstance(value, Curve):
        return value.in_float()
    if isinstance(value, Pending):
        return value.as_float()
    if isinstance(value, Weight):
        raise NotCoveredError(f"{value.name} in float")
    return None if value is None else np.asarray(value, np.float32)
