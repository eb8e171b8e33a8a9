"""Ranges of activations from histograms that are filled batch by batch: the memory does not grow with the samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from csqtool.nn.activation import ActivationFakeQuantizer

BINS = 4096  # on each side of zero; an edge of two lies on it
SHARES = tuple(
    torch.linspace(0.2, 1.0, 33).tolist()
)  # of the whole range, that the least squared error is looked for in
VALUES = 65536  # about as many of a batch are counted, evenly spaced
PERCENTILE = 0.9999  # of the values other than zero lie within the range


class ValueHistogram:
    """Counts of an activation's values in bins of one width, which doubles when a value lies beyond all of them.

    Attributes:
        counts: values other than 0 in each bin, int64 [2·BINS]; the first of the upper half begins at 0. Of a large
            batch, evenly spaced ones are counted.
        width: of a bin; 0 before the first value other than 0.
        low, high: the least and the largest value, with 0 among them.
        seen: how many values there were.
        constant: whether all of them were the same.

    Example:
        >>> histogram = ValueHistogram()
        >>> for batch in (torch.tensor([0.0, 0.5, 1.0]), torch.tensor([3.0, -0.5])):
        ...     histogram.add(batch)
        >>> histogram.low, histogram.high, histogram.seen, int(histogram.counts.sum())
        (-0.5, 3.0, 5, 4)
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * BINS, dtype=torch.int64)
        self.width = 0.0
        self.low = self.high = 0.0
        self.seen = 0
        self.constant = True
        self._first = 0.0

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Count values, finite and of any shape."""
        if not values.numel():
            return
        flat = values.detach().flatten().double()
        least, largest = float(flat.min()), float(flat.max())
        if not self.seen:
            self._first = least
        self.constant = self.constant and least == largest == self._first
        self.seen += flat.numel()
        self.low, self.high = min(self.low, least), max(self.high, largest)
        flat = flat[:: max(1, flat.numel() // VALUES)]
        flat = flat[flat != 0]
        if not flat.numel():
            return
        self._widen(max(-least, largest))
        index = torch.floor(flat / self.width).clamp_(-BINS, BINS - 1).long() + BINS
        self.counts += torch.bincount(index, minlength=2 * BINS).cpu()

    def _widen(self, magnitude: float) -> None:
        if not self.width:
            self.width = math.ldexp(1.0, max(math.frexp(magnitude)[1], -900)) / BINS
        while magnitude > self.width * BINS:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
            self.width *= 2

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return the middles of the bins that hold values, and their counts, both float64 [B]."""
        index = self.counts.nonzero().flatten()
        return (index - BINS + 0.5).double() * self.width, self.counts[index].double()


def min_max(histogram: ValueHistogram, quantizer: ActivationFakeQuantizer) -> tuple[float, float]:
    """Return the least and the largest value."""
    return histogram.low, histogram.high


def percentile(histogram: ValueHistogram, quantizer: ActivationFakeQuantizer) -> tuple[float, float]:
    """Return the range without the outermost values: (1 − `PERCENTILE`)/2 of them on each side."""
    middles, counts = histogram.filled()
    below = counts.cumsum(0)
    cut = (1 - PERCENTILE) / 2 * below[-1]
    half = histogram.width / 2
    low = middles[int((below <= cut).sum())] - half
    high = middles[int((below < below[-1] - cut).sum())] + half
    return max(min(float(low), 0.0), histogram.low), min(max(float(high), 0.0), histogram.high)


def least_squares(histogram: ValueHistogram, quantizer: ActivationFakeQuantizer) -> tuple[float, float]:
    """Return the share of the range, `SHARES`, whose grid has the least squared error."""
    middles, counts = histogram.filled()

    def error(share: float) -> float:
        scale, zero_point = _grid(share * histogram.low, share * histogram.high, quantizer.largest)
        rounded = (torch.round(middles / scale) + zero_point).clamp(0, quantizer.largest) - zero_point
        return float((counts * (rounded * scale - middles).square()).sum())

    # Of equal errors the widest range: a constant is then met exactly.
    best = min(reversed(SHARES), key=error)
    return best * histogram.low, best * histogram.high


def _grid(low: float, high: float, largest: int) -> tuple[float, int]:
    scale = max((high - low) / largest, float(torch.finfo(torch.float32).tiny))
    return scale, round(-low / scale)


RANGES: dict[str, Callable[[ValueHistogram, ActivationFakeQuantizer], tuple[float, float]]] = {
    "mse": least_squares,
    "percentile": percentile,
    "min-max": min_max,
}


def set_range(quantizer: ActivationFakeQuantizer, histogram: ValueHistogram, kind: str) -> None:
    """Choose a quantizer's scale and zero point from its activation's histogram.

    An activation that is 0 everywhere gets the range 0 to 1, as in `ActivationFakeQuantizer.calibrate`.

    Args:
        quantizer: is changed.
        histogram: of its activation, at least one value.
        kind: a key of `RANGES`.
    """
    low, high = RANGES[kind](histogram, quantizer) if histogram.width else (0.0, 1.0)
    quantizer.set_grid(*_grid(low, high, quantizer.largest))
