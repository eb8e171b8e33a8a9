"""How a layer's integers lie in flash: docs/c-inference.md, section 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLAIN, FIELDS, TRITS = "PLAIN", "FIELDS", "TRITS"


@dataclass(frozen=True)
class Stored:
    """The integers of one layer in flash.

    Attributes:
        encoding: PLAIN (int8, read where they lie), FIELDS (of `bits`) or TRITS (five of base 3 in a byte).
        bits: of a field.
        base: an integer is base + step·field.
        step: see `base`.
        rows: the bytes of each filter, [channels, bytes].
        is_wide: whether integers need nine bits.
    """

    encoding: str
    bits: int
    base: int
    step: int
    rows: NDArray[np.uint8]
    is_wide: bool

    @property
    def is_plain(self) -> bool:
        """Whether a kernel reads the integers where they lie."""
        return self.encoding == PLAIN

    @property
    def name(self) -> str:
        """For reports."""
        return {PLAIN: "int8", TRITS: "ternary, 1.6 bits"}.get(self.encoding, f"{self.bits} bits")


def store(q: NDArray[Any], weights: str) -> Stored:
    """Return the smallest form of integers [channels, n], or a byte each (``int8``).

    Integers that need nine bits have no form of a byte and are packed always.
    """
    low, high = int(q.min(initial=0)), int(q.max(initial=0))
    is_wide = not -128 <= low <= high <= 127
    if weights == "int8" and not is_wide:
        return _plain(q)
    low, high = (int(q.min()), int(q.max())) if q.size else (0, 0)
    step = int(np.gcd.reduce(q.reshape(-1).astype(np.int64) - low)) if q.size else 1
    step = max(step, 1)
    levels = (high - low) // step + 1
    bits = max(1, (levels - 1).bit_length())
    indices = ((q.astype(np.int64) - low) // step).astype(np.uint16)
    n = q.shape[1]
    if bits == 8:
        return _plain(q) if not is_wide else _fields(indices, bits, low, step, is_wide)
    if levels == 3 and -(-n // 5) < -(-n * 2 // 8):
        padded = np.zeros((len(q), -(-n // 5) * 5), np.uint16)
        padded[:, :n] = indices
        digits = padded.reshape(len(q), -1, 5) @ np.array([1, 3, 9, 27, 81], np.uint16)
        return Stored(TRITS, 2, low, step, digits.astype(np.uint8), is_wide)
    return _fields(indices, bits, low, step, is_wide)


def _plain(q: NDArray[Any]) -> Stored:
    return Stored(PLAIN, 8, 0, 1, q.astype(np.int8).view(np.uint8), False)


def _fields(indices: NDArray[np.uint16], bits: int, base: int, step: int, is_wide: bool) -> Stored:
    ones = (indices[:, :, None] >> np.arange(bits, dtype=np.uint16) & 1).astype(np.uint8)  # [channels, n, bits]
    return Stored(
        FIELDS, bits, base, step, np.packbits(ones.reshape(len(indices), -1), axis=1, bitorder="little"), is_wide
    )
