"""The stream of scales and biases of an inference file: little-endian words of 16 bits, a record for each layer.

A record holds its kinds, then the scales, then the biases (`docs/csq-format.md`, section 9):

    >>> scales = np.array([0.5, 0.3, 0.0625], np.float32)
    >>> record = Record(scales, np.array([7, -300, 0]))
    >>> words = encode_record(record)
    >>> len(words)  # kinds, exponent, three scales, three biases
    8
    >>> (found,) = decode_records(words, [3])
    >>> found.bias.tolist()
    [7, -300, 0]
    >>> float(np.abs(found.scale / scales - 1).max()) < 2**-15
    True
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.rans import StreamError

ONE, FLOATS, CODES = 0, 1, 16  # kinds of scales; CODES + E has E bits of exponent
NONE, FLOAT32, FLOAT16, INT32, INT16 = range(5)  # kinds of biases
MOST_EXPONENT_BITS = 5  # eleven bits of mantissa are left, as in float16 with one more
LEAST_EXPONENT = -149  # of float32: every code is then exactly a float32, or too large for one
BIAS_TYPES: dict[int, np.dtype[Any]] = {
    FLOAT32: np.dtype("<f4"), FLOAT16: np.dtype("<f2"), INT32: np.dtype("<i4"), INT16: np.dtype("<i2"),
}  # fmt: skip

Words = NDArray[np.uint16]


@dataclass(frozen=True)
class Record:
    """What is stored for one layer.

    Attributes:
        scale: above zero; float32 [C], one a channel, or a float32 of no axes, one for all.
        bias: [C]: int32 in units of the input's step times the scale, float32, or float16; None for none.
    """

    scale: NDArray[np.float32]
    bias: NDArray[Any] | None


def rounded_scales(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales of each channel as they are stored: off by at most 2^−12 of their value.

    Args:
        scale: float32 [C], above zero.
    """
    found = _codes(scale)
    return scale if found is None else _values(*found)


def encode_record(record: Record) -> Words:
    """Return a layer's record; scales of channels are rounded, see `rounded_scales`."""
    scale = np.asarray(record.scale, "<f4")
    found = _codes(scale) if scale.ndim else None
    if found is not None:
        bits, lowest, codes = found
        kind, scales = CODES + bits, np.concatenate([_words(np.array(lowest, "<i2")), codes])
    else:
        kind, scales = FLOATS if scale.ndim else ONE, _words(scale)
    bias = record.bias
    if bias is None:
        return np.concatenate([np.array([kind], np.uint16), scales])
    bias_kind = {"f4": FLOAT32, "f2": FLOAT16}.get(bias.dtype.str[1:])
    if bias_kind is None:
        limits = np.iinfo(np.int16)
        bias_kind = INT16 if limits.min <= bias.min() and bias.max() <= limits.max else INT32
    kinds = np.array([kind + (bias_kind << 8)], np.uint16)
    return np.concatenate([kinds, scales, _words(bias.astype(BIAS_TYPES[bias_kind]))])


def decode_records(words: Words, channels: Sequence[int]) -> Iterator[Record]:
    """Yield the record of each layer.

    Args:
        words: the whole stream.
        channels: output channels of each layer, in the order of the table.

    Raises:
        StreamError: the stream breaks a rule.
    """
    at = 0

    def taken(count: int) -> Words:
        nonlocal at
        if count > words.size - at:
            raise StreamError(f"it ends at word {words.size}, inside a layer's record")
        at += count
        return words[at - count : at]

    for number in channels:
        kinds = int(taken(1)[0])
        kind, bias_kind = kinds & 255, kinds >> 8
        if kind in (ONE, FLOATS):
            scale = np.frombuffer(taken(2 * (number if kind else 1)).astype("<u2").tobytes(), "<f4")
            scale = scale.astype(np.float32).reshape(() if kind == ONE else (number,))
        elif CODES <= kind <= CODES + MOST_EXPONENT_BITS:
            lowest = int(taken(1).view(np.int16)[0])
            if lowest < LEAST_EXPONENT:
                raise StreamError(f"scales with the exponent {lowest} before word {at}, at least {LEAST_EXPONENT}")
            scale = _values(kind - CODES, lowest, taken(number))
        else:
            raise StreamError(f"scales of kind {kind} at word {at - 1}")
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise StreamError(f"a scale before word {at} is not above zero and finite")
        bias = None
        if bias_kind != NONE:
            if bias_kind not in BIAS_TYPES:
                raise StreamError(f"biases of kind {bias_kind} before word {at}")
            stored = BIAS_TYPES[bias_kind]
            bias = np.frombuffer(taken(number * stored.itemsize // 2).astype("<u2").tobytes(), stored)
            bias = bias.astype(np.int32 if stored.kind == "i" else stored.newbyteorder("="))
            if bias.dtype.kind == "f" and not np.isfinite(bias).all():
                raise StreamError(f"a bias before word {at} is not finite")
        yield Record(scale, bias)
    if at != words.size:
        raise StreamError(f"{words.size - at} words are left after the last layer's record")


def _codes(scale: NDArray[np.float32]) -> tuple[int, int, Words] | None:
    """Return bits of exponent, the lowest exponent and a code for each channel; None if 16 bits are too few."""
    mantissa, exponent = np.frexp(scale.astype(np.float64))  # mantissa in [0.5, 1)
    for bits in range(MOST_EXPONENT_BITS + 1):
        hidden = 1 << (16 - bits)
        whole = np.rint(mantissa * 2 * hidden).astype(np.int64)  # hidden … 2 · hidden
        carried = whole == 2 * hidden
        whole[carried] = hidden
        raised = exponent + carried
        lowest = int(raised.min())
        above = raised - lowest
        if above.max() < 1 << bits:
            codes = ((above << (16 - bits)) + whole - hidden).astype(np.uint16)
            lowest -= 17 - bits  # of the mantissa as a whole number
            exact = lowest >= LEAST_EXPONENT and np.isfinite(_values(bits, lowest, codes)).all()
            return (bits, lowest, codes) if exact else None
    return None


def _values(bits: int, lowest: int, codes: Words) -> NDArray[np.float32]:
    """Return (2^(16−E) + low bits of the code) · 2^(lowest + high bits), in float32."""
    hidden = 1 << (16 - bits)
    low, high = codes.astype(np.int64) & (hidden - 1), codes.astype(np.int64) >> (16 - bits)
    with np.errstate(over="ignore", under="ignore"):
        values: NDArray[np.float32] = np.ldexp((hidden + low).astype(np.float64), high + lowest).astype(np.float32)
    return values


def _words(array: NDArray[Any]) -> Words:
    return np.frombuffer(array.tobytes(), "<u2").astype(np.uint16)
