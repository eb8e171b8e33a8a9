"""Real factors as integers or in float32, and rounding: the numbers of docs/c-inference.md, sections 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_SHIFT = 62


class Factor(NamedTuple):
    """A factor as multiplier·2^−shift."""

    multiplier: int
    shift: int


def factor(value: float, *, bits: int = 31) -> Factor:
    """Return a positive factor with a multiplier of `bits` bits, or of fewer where it would be shifted by over 62.

    Raises:
        OverflowError: it is 2^30 or more, or not finite.
    """
    if not 0 <= value < 2**30:
        raise OverflowError(f"a factor of {value}")
    if value == 0:
        return Factor(0, 1)
    exponent = math.frexp(value)[1]  # value = m·2^exponent, m in [1/2, 1)
    shift = min(bits - exponent, MAX_SHIFT)
    multiplier = round(math.ldexp(value, shift))
    if multiplier == 1 << bits:
        multiplier, shift = multiplier >> 1, shift - 1
    return Factor(multiplier, shift)


def channel_factors(values: Sequence[float]) -> list[Factor]:
    """Return the factors of a layer's channels, which share the shift of the largest.

    Raises:
        OverflowError: one of them is too large.
    """
    shift = factor(max(values)).shift
    return [Factor(round(math.ldexp(value, shift)), shift) for value in values]


def common_factors(first: float, second: float) -> tuple[int, int, int]:
    """Return two factors' multipliers, the larger of 30 bits, and the shift that they share; signs are kept.

    Raises:
        OverflowError: one of them is too large.
    """
    shift = factor(max(abs(first), abs(second)), bits=30).shift
    return round(math.ldexp(first, shift)), round(math.ldexp(second, shift)), shift


def float_factors(values: Sequence[float], *, same_once: bool = True) -> NDArray[np.float32]:
    """Return factors rounded to float32, with `same_once` one if they are the same; signs are kept.

    Raises:
        OverflowError: one of them is too large.
    """
    factor(max(abs(value) for value in values))
    found = np.array(values, np.float32)
    return found[:1] if same_once and (found == found[0]).all() else found


def quantized(value: float, scale: float, zero_point: int, largest: int) -> int:
    """Return clip(round(x / scale) + zero point, 0, largest) of a real number, computed in float32."""
    steps = np.rint(np.float32(value) / np.float32(scale)) + zero_point
    return int(np.clip(steps, 0, largest))
