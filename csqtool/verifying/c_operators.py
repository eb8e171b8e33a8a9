"""Operators of the C inference on centered integers (docs/c-inference.md, section 5), by exact sums in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from numpy.typing import NDArray
from torch import Tensor

from csqtool.verifying.c_numbers import CGrid, Ints, factors


def _exact(x: Tensor) -> Ints:
    found: Ints = x.numpy().astype(np.int64)
    return found


def product(kind: str, d: Ints, q: Ints, attributes: Mapping[str, Any]) -> Ints:
    """Return the sums of a convolution or linear layer.

    Args:
        kind: ``Conv``, ``ConvTranspose``, or a linear layer's.
        d: centered input [N, channels, …], of a linear layer [N, …, features].
        q: integers as PyTorch has them; of a linear layer [outputs, features].
        attributes: ONNX's.
    """
    x, w = torch.from_numpy(d.astype(np.float64)), torch.from_numpy(np.ascontiguousarray(q).astype(np.float64))
    if kind not in ("Conv", "ConvTranspose"):
        return _exact(x @ w.T)
    rank = x.ndim - 2
    ones = [1] * rank
    stride, dilation = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    pads, groups = list(attributes.get("pads", [0] * 2 * rank)), int(attributes.get("group", 1))
    if kind == "Conv":
        conv: Any = F.conv1d if rank == 1 else F.conv2d
        return _exact(conv(_surrounded(x, pads, 0.0), w, None, stride, 0, dilation, groups))
    back: Any = F.conv_transpose1d if rank == 1 else F.conv_transpose2d
    extra = list(attributes.get("output_padding", [0] * rank))
    whole = back(x, w, None, stride, 0, 0, groups, dilation)
    for axis in range(rank):  # what padding cuts off, and what output padding adds
        size = whole.shape[2 + axis] - pads[axis] - pads[rank + axis] + extra[axis]
        whole = F.pad(whole, [0, 0] * (rank - 1 - axis) + [0, max(0, extra[axis] - pads[rank + axis])])
        whole = whole.narrow(2 + axis, pads[axis], size)
    return _exact(whole)


def filters_in_flash(kind: str, q: Ints, groups: int) -> Ints:
    """Return each channel's integers in the order of section 6: [channels, kernel height and width · inputs]."""
    if kind == "ConvTranspose":
        inputs, outputs = q.shape[0] // groups, q.shape[1]
        per_channel = [
            q[g * inputs : (g + 1) * inputs, o][(slice(None), *[slice(None, None, -1)] * (q.ndim - 2))]
            for g in range(groups) for o in range(outputs)
        ]  # fmt: skip
        q = np.stack(per_channel)
    return np.moveaxis(q, 1, -1).reshape(len(q), -1)


def combined(kind: str, a: Ints, a_grid: CGrid, b: Ints, b_grid: CGrid, grid: CGrid) -> Ints:
    """Return a sum, difference or product of two values on a grid."""
    first, second = float(a_grid.scale), float(b_grid.scale)
    target = float(grid.scale)
    if kind == "Mul":
        return grid.scaled(a * b, np.asarray(first * second / target))
    if grid.in_float:
        terms = [d.astype(np.float32) * np.float32(scale / target) for d, scale in ((a, first), (b, second))]
        return grid.nearest(terms[0] + terms[1] if kind == "Add" else terms[0] - terms[1])
    shift = factors(max(first / target, second / target), bits=30)[1]
    m_a, m_b = (np.rint(np.ldexp(scale / target, int(shift))).astype(np.int64) for scale in (first, second))
    return grid.rounded(a * m_a + (b * m_b if kind == "Add" else -b * m_b), shift)


def window_sums(
    kind: str, d: Ints, attributes: Mapping[str, Any], rest: Sequence[Any]
) -> tuple[Ints, NDArray[np.int64]]:
    """Return the sums of windows, and how many values each is the mean of."""
    rank = d.ndim - 2
    if kind == "AveragePool":
        kernel = list(attributes["kernel_shape"])
        x = torch.from_numpy(d.astype(np.float64))
        sums = _exact(windowed(x, attributes).sum(-1))
        inside = _exact(windowed(torch.ones_like(x[:1, :1]), attributes).sum(-1))
        whole = attributes.get("count_include_pad", 0) or not any(attributes.get("pads", [0]))
        return sums, np.full(1, np.prod(kernel)) if whole else np.maximum(inside, 1)
    keep = kind == "GlobalAveragePool" or bool(attributes.get("keepdims", 1))
    axes = tuple(range(2, d.ndim))
    if kind == "ReduceMean" and sorted(int(a) % d.ndim for a in np.asarray(rest[0]).reshape(-1)) != list(axes):
        raise ValueError("it does not take the mean over all positions")
    return d.sum(axis=axes, keepdims=keep), np.full(1, np.prod(d.shape[2 : 2 + rank]))


def largest(d: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Return the largest integers or floats of windows."""
    if d.dtype == np.float32:
        return windowed(torch.from_numpy(np.ascontiguousarray(d)), attributes, -np.inf).amax(-1).numpy()
    return _exact(windowed(torch.from_numpy(d.astype(np.float64)), attributes, -1e9).amax(-1))


def repeated(d: NDArray[Any], rest: Sequence[Any]) -> NDArray[Any]:
    """Return each value repeated along the axes, as Resize's sizes or scales say."""
    given = [np.asarray(a) for a in rest if a is not None and np.asarray(a).size == d.ndim]
    if len(given) != 1:
        raise ValueError("its scales are unknown")
    times = given[0] / np.array(d.shape) if given[0].dtype.kind == "i" else given[0]
    for axis, count in enumerate(times.tolist()):
        if count != int(count):
            raise ValueError("it does not repeat values a whole number of times")
        d = d.repeat(int(count), axis)
    return d


def padded(d: NDArray[Any], attributes: Mapping[str, Any], rest: Sequence[Any]) -> NDArray[Any]:
    """Return a value with zeros, a constant, or parts of it around it; padding below 0 cuts off."""
    mode = attributes.get("mode", b"constant").decode()
    pads = np.asarray(rest[0]).reshape(2, -1).T.tolist()
    if len(pads) != d.ndim or (len(rest) > 2 and rest[2] is not None):
        raise ValueError("it names axes")
    if mode == "constant":
        value = 0 if len(rest) < 2 or rest[1] is None else np.asarray(rest[1]).reshape(())
        for axis, pair in enumerate(pads):
            d = d[(slice(None),) * axis + (slice(max(-pair[0], 0), d.shape[axis] - max(-pair[1], 0)),)]
        return np.pad(d, [(max(one, 0), max(other, 0)) for one, other in pads], constant_values=value)
    return np.pad(d, pads, {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode])  # type: ignore[call-overload, no-any-return]


def _surrounded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    rank = len(pads) // 2
    return F.pad(x, [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])], value=value)


def windowed(x: Tensor, attributes: Mapping[str, Any], value: float = 0.0) -> Tensor:
    """Return the values of each window: [N, channels, …, values of a window]; outside they are `value`."""
    kernel = list(attributes["kernel_shape"])
    rank = len(kernel)
    ones = [1] * rank
    strides, dilations = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    if attributes.get("ceil_mode", 0):  # the last window may reach further
        for axis in range(rank):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            over = (x.shape[2 + axis] + pads[axis] + pads[rank + axis] - reach) % strides[axis]
            begins = x.shape[2 + axis] + pads[axis] + pads[rank + axis] - reach - over + strides[axis]
            if over and begins < x.shape[2 + axis] + pads[axis]:
                pads[rank + axis] += strides[axis] - over
    x = _surrounded(x, pads, value)
    for axis in range(rank):
        x = x.unfold(2 + axis, dilations[axis] * (kernel[axis] - 1) + 1, strides[axis])[..., :: dilations[axis]]
    return x.flatten(2 + rank)
