"""The verifier's own decoder of the streams of an inference file, written from section 9 of `docs/csq-format.md`.

Nothing here is shared with `csqtool.csq`: this reads bytes one field after the other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.csq_streams import require

BEGINNING = '{"format_version":2,'  # of an inference file's metadata
CHANNELS, ACTIVATIONS = ":channels", ":activations"
BIASES = {1: "<f4", 2: "<f2", 3: "<i4", 4: "<i2"}


@dataclass(frozen=True)
class StoredLayer:
    """Scales and biases of a layer, as an inference file holds them.

    Attributes:
        scale: float32, [C] or without axes.
        error: how far each scale may be off, half a unit of its code; 0 where it is exact; of the shape of `scale`.
        bias: [C], integers, float32 or float16; None without.
    """

    scale: NDArray[np.float32]
    error: NDArray[np.float64]
    bias: NDArray[Any] | None


def stored_layers(stream: bytes, channels: Sequence[int]) -> Iterator[StoredLayer]:
    """Yield the layers' scales and biases.

    Args:
        stream: the bytes of the tensor `CHANNELS`.
        channels: the first dimension of each tensor of integers, in the order of the table.

    Raises:
        BadStream: a rule is violated.
    """
    at = 0
    for count in channels:
        require(at + 2 <= len(stream), "the stream of scales ends before the last layer")
        scale_kind, bias_kind = stream[at], stream[at + 1]
        at += 2
        require(scale_kind in (0, 1, *range(16, 22)), f"scales of kind {scale_kind}")
        require(bias_kind in (0, *BIASES), f"biases of kind {bias_kind}")
        bias_bytes = count * np.dtype(BIASES[bias_kind]).itemsize if bias_kind else 0
        scale_bytes = {0: 4, 1: 4 * count}.get(scale_kind, 2 + 2 * count)
        end = at + scale_bytes
        require(end + bias_bytes <= len(stream), "the stream of scales ends inside a layer")
        if scale_kind < 16:
            scale = np.frombuffer(stream[at:end], "<f4").astype(np.float32)
            scale = scale if scale_kind else scale.reshape(())
            error = np.zeros(scale.shape)
        else:
            scale, error = _coded(stream[at:end], count, scale_kind - 16)
        require(np.isfinite(scale).all() and (scale > 0).all(), "a scale is not finite and above zero")
        bias = np.frombuffer(stream[end : end + bias_bytes], BIASES[bias_kind]) if bias_kind else None
        require(bias is None or np.isfinite(bias).all(), "a bias is not finite")
        at = end + bias_bytes
        yield StoredLayer(scale, error, bias)
    require(at == len(stream), f"{len(stream) - at} bytes are left after the last layer's biases")


def _coded(part: bytes, count: int, bits: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the scales in `count` codes, of which the first `bits` bits are an exponent, and half a unit of each."""
    base, *codes = struct.unpack(f"<h{count}H", part)
    require(base >= -149, f"the exponent {base} is below that of float32")
    scales, error = np.zeros(count, np.float32), np.zeros(count)
    for channel, code in enumerate(codes):
        exponent, mantissa = divmod(code, 1 << (16 - bits))
        exponent += base
        require(exponent < 128, "a scale is not finite and above zero")
        value = math.ldexp(mantissa + (1 << (16 - bits)), exponent)
        require(value < 2.0**128, "a scale is not finite and above zero")
        scales[channel], error[channel] = value, math.ldexp(0.5, exponent)
    return scales, error


def stored_activations(stream: bytes) -> list[tuple[np.float32, int, int]]:
    """Return scale, zero point and bits of each activation quantizer.

    Raises:
        BadStream: the stream has a wrong length.
    """
    require(len(stream) % 6 == 0, f"{len(stream)} bytes of activations, six for each")
    return [(np.float32(scale), zero, bits) for scale, zero, bits in struct.iter_unpack("<fBB", stream)]
