"""Hard bit gates → signed integers, scale and mask: numpy only, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.quantized_model import IntegerArray, LayerIntegers, smallest_dtype


def digits_to_integers(digits: NDArray[np.integer[Any]], mask: NDArray[np.bool_], scale: np.float32) -> LayerIntegers:
    """Assemble q, Δ and the mask string of one layer (CSQ, eq. 4 with all gates unit steps).

    The common power of two of all integers (planes below the lowest one in use) moves into the scale, and a
    negative sign of the scale into the integers; ``float32(q) * scale`` does not change.

    Args:
        digits: p_b − n_b ∈ {−1, 0, 1}, shape [n, *weight], plane b on index b.
        mask: planes kept, shape [n].
        scale: s/(2^n − 1), float32: the weight of plane 0; not zero.

    Returns:
        q (int8, or int16 if it needs nine bits), Δ > 0, and the mask, most significant plane first.
    """
    kept = np.where(mask, 1 << np.arange(len(mask)), 0)
    q = np.tensordot(kept, digits.astype(np.int64), axes=1)  # (n,) · (n, *weight) → (*weight)
    return LayerIntegers(*reduced(q, scale), mask_string(np.flatnonzero(mask).tolist(), len(mask)))


def reduced(q: NDArray[np.integer[Any]], scale: np.float32) -> tuple[IntegerArray, np.float32]:
    """Move the integers' common power of two into the scale, and a negative sign of the scale into the integers.

    Args:
        q: integers of any width.
        scale: not zero.

    Returns:
        q (int8, or int16 if it needs nine bits) and Δ > 0 with the same products.
    """
    used = np.bitwise_or.reduce(np.abs(q), axis=None)
    shift = int(used & -used).bit_length() - 1 if used else 0
    q = q >> shift
    delta = np.float32(scale) * np.float32(2.0**shift)  # exact: a power of two
    if delta < 0:
        q, delta = -q, -delta
    return smallest_dtype(q), np.float32(delta)


def mask_string(kept: Sequence[int], n_planes: int) -> str:
    """Return which of `n_planes` planes are kept, most significant first."""
    return "".join("01"[b in kept] for b in reversed(range(n_planes)))


def planes_of(mask: str) -> tuple[int, ...]:
    """Return the planes that a mask string keeps, ascending."""
    return tuple(b for b, bit in enumerate(reversed(mask)) if bit == "1")
