"""Grids, factors and rounding of the C inference, from docs/c-inference.md: numpy only, exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CGrid:
    """A grid of integers (section 1); `in_float`: results are moved to it in float32, not by integers."""

    scale: np.float32
    zero_point: int
    low: int
    high: int
    in_float: bool = False

    def bounded(self, low: float | None, high: float | None) -> CGrid:
        """Return the grid narrowed by real bounds."""
        ends = [self.low, self.high]
        for end, bound in enumerate((low, high)):
            if bound is not None and np.isfinite(bound):
                steps = np.rint(np.float32(bound) / self.scale) + self.zero_point
                ends[end] = int(min(max(steps, 0), 255))
        floor = min(max(self.low, ends[0]), self.high)
        return replace(self, low=floor, high=max(min(self.high, ends[1]), self.low))

    def clipped(self, steps: NDArray[Any]) -> Ints:
        """Return rounded steps as centered integers: moved to the grid, clipped, minus the zero point."""
        integers: Ints = np.clip(steps + self.zero_point, self.low, self.high).astype(np.int64)
        return integers - self.zero_point

    def measured(self, values: NDArray[np.float32]) -> Ints:
        """Return floats on this grid, centered (section 2)."""
        with np.errstate(all="ignore"):
            steps = np.rint(values.astype(np.float32) / self.scale)
        return self.clipped(np.nan_to_num(np.clip(steps, -1024, 1024), nan=-1024))

    def rounded(self, products: Ints, shift: NDArray[np.int64]) -> Ints:
        """Return products / 2^shift on this grid, centered (section 3)."""
        whole = products >> shift
        rest = products - (whole << shift)
        half = np.int64(1) << (shift - 1)
        up = (rest > half) | ((rest == half) & (whole % 2 == 1))
        return self.clipped(whole + up)

    def scaled(self, sums: Ints, ratios: NDArray[np.float64]) -> Ints:
        """Return sums times factors on this grid, centered (section 3, in float32 where the grid is)."""
        if self.in_float:
            return self.nearest(sums.astype(np.float32) * ratios.astype(np.float32))
        multipliers, shifts = factors(ratios)
        return self.rounded(sums * multipliers, shifts)

    def nearest(self, steps: NDArray[np.float32]) -> Ints:
        """Return steps in float32 on this grid, centered (section 3): numpy's own rounding."""
        return self.clipped(np.rint(steps.astype(np.float64)))


def factors(values: Any, bits: int = 31) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return multipliers and shifts of factors (section 4)."""
    values = np.asarray(values, np.float64)
    exponents = np.frexp(values)[1].astype(np.int64)
    shifts = np.minimum(bits - exponents, 62)
    multipliers = np.rint(np.ldexp(values, shifts)).astype(np.int64)
    full = multipliers == 1 << bits
    multipliers, shifts = np.where(full, multipliers >> 1, multipliers), np.where(full, shifts - 1, shifts)
    return multipliers, np.where(values == 0, 1, shifts)
