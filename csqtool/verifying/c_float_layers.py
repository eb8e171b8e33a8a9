"""Layers of floats in the C inference (docs/c-inference.md, section 5.3): numpy, one rounding an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csqtool.verifying.c_numbers import CGrid, Ints
from csqtool.verifying.c_operators import filters_in_flash, windowed
from csqtool.verifying.c_sums import Computed, LayerNumbers, Weight

Array = NDArray[np.float32]
SUMS = 16  # that a sum of products consists of
AT_A_TIME = 1 << 18  # products


@dataclass(frozen=True)
class FloatSums:
    """A layer of floats before what comes after it.

    Attributes:
        name: the parameter.
        filters: integers as they lie in flash.
        scaled: sums times the channels' scales, [N, …].
        scale: of each channel.
        bias: of each channel, with the shape that it has beside `scaled`.
        shape: the shape that numbers of channels have beside `scaled`.
        computed: told each run of the layer.
        is_moved: the first axis of the one sample is not the batch.
    """

    name: str
    filters: Ints
    scaled: Array
    scale: Array
    bias: Array
    shape: list[int]
    computed: Computed
    is_moved: bool = False

    def plus(self, bias: NDArray[Any]) -> FloatSums:
        """Return the layer with a bias."""
        return replace(self, bias=np.asarray(bias, np.float32).reshape(self.shape))

    def as_float(self) -> Array:
        """Return the result; it is computed once."""
        made = self.computed.floats
        if id(self) not in made:
            made[id(self)] = self, ran(
                self.name, self.filters, self.scaled + self.bias, self.computed, self.scale, is_moved=self.is_moved
            )  # fmt: skip
        return made[id(self)][1]

    def on(self, grid: CGrid) -> Ints:
        """Return the result on a grid, centered."""
        return grid.measured(self.as_float())


def ran(
    name: str, filters: Ints, found: Array, computed: Computed, scale: Array | None = None, *, is_moved: bool = False
) -> Array:  # fmt: skip
    """Note a layer's run; return its result, or what replaces it.

    Args:
        name: the parameter.
        filters: integers as they lie in flash.
        found: the result.
        computed: is told.
        scale: what each channel's sums are multiplied by; None for an embedding.
        is_moved: the result is that of one sample, and its first axis is not the batch.
    """
    nothing = np.zeros(len(filters), np.int64)
    step = nothing.astype(np.float32) if scale is None else scale
    computed.layers.append(LayerNumbers(name, filters, nothing, nothing, nothing, step))
    if name in computed.places:
        computed.repeated.add(name)  # two values have no place of one name
    computed.places[name] = as_bytes(found)[None] if is_moved else as_bytes(found)
    if name not in computed.forced:
        return found
    given = from_bytes(computed.forced[name])
    return given[0] if is_moved else given


def as_bytes(values: Array) -> NDArray[np.uint8]:
    """Return floats [N, …] as their bytes, [N, …, 4]."""
    return np.ascontiguousarray(values, np.float32)[..., None].view(np.uint8)


def from_bytes(values: NDArray[np.uint8]) -> Array:
    """Return floats [N, …] from their bytes, [N, …, 4]."""
    return np.ascontiguousarray(values).view(np.float32)[..., 0]


def layer_of_floats(
    kind: str, x: Array, weight: Weight, q: Ints, attributes: Mapping[str, Any], computed: Computed, *, is_moved: bool
) -> FloatSums:
    """Return a convolution or linear layer.

    Args:
        kind: ONNX's operator.
        x: its input [N, …].
        weight: its weight.
        q: the weight's integers; of a linear layer [outputs, features].
        attributes: ONNX's.
        computed: is told when the layer runs.
        is_moved: as `FloatSums` has it.
    """
    groups = int(attributes.get("group", 1))
    filters = filters_in_flash(kind, q, groups)
    channels = len(filters)
    is_spatial = kind in ("Conv", "ConvTranspose")
    if is_spatial:
        given = torch.from_numpy(np.ascontiguousarray(x)), {"kernel_shape": q.shape[2:], **attributes}
        if kind == "ConvTranspose":
            given = _spread(x, q.shape[2:], attributes)
        found = windowed(*given).numpy()  # [N, inputs, …, kernel positions]
        places = found.shape[2:-1]
        by_group = found.reshape(len(x), groups, -1, int(np.prod(places)), found.shape[-1])
        rows = by_group.transpose(0, 3, 1, 4, 2).reshape(-1, groups, filters.shape[1])
    else:
        places = x.shape[1:-1]
        rows = x.reshape(-1, 1, x.shape[-1])
    sums = _summed(rows, filters.reshape(rows.shape[1], -1, filters.shape[1]).astype(np.float32))
    sums = sums.reshape(len(x), *places, channels)
    sums = np.moveaxis(sums, -1, 1) if is_spatial else sums
    shape = [1] * sums.ndim
    shape[1 if is_spatial else -1] = channels
    scale = np.broadcast_to(np.asarray(weight.scale, np.float32).reshape(-1), (channels,)).reshape(shape)
    none = np.zeros(shape, np.float32)
    layer = FloatSums(weight.name, filters, sums * scale, scale.reshape(-1), none, shape, computed, is_moved)
    return layer if weight.bias is None or kind == "MatMul" else layer.plus(weight.bias)


def _spread(x: Array, kernel: tuple[int, ...], attributes: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the input of a transposed convolution with zeros between neighbours, and the windows over it."""
    rank = len(kernel)
    ones, zeros = [1] * rank, [0] * rank
    strides, dilations = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    pads, more = list(attributes.get("pads", zeros * 2)), list(attributes.get("output_padding", zeros))
    sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], strides, strict=True)]
    wide = np.zeros((*x.shape[:2], *sizes), np.float32)
    wide[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))] = x
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    around = [reach[a] - pads[a] for a in range(rank)] + [reach[a] - pads[rank + a] + more[a] for a in range(rank)]
    return torch.from_numpy(wide), {"kernel_shape": kernel, "dilations": dilations, "pads": around}


def _summed(x: Array, w: Array) -> Array:
    """Return sums of products [rows, groups, channels]; x is [rows, groups, n], w [groups, channels, n]."""
    missing = -x.shape[2] % SUMS
    x, w = (np.pad(one, [(0, 0), (0, 0), (0, missing)]) for one in (x, w))
    found = np.empty((len(x), *w.shape[:2]), np.float32)
    step = max(1, AT_A_TIME // (w.shape[0] * w.shape[1] * SUMS))
    for start in range(0, len(x), step):
        rows = x[start : start + step, :, None]
        sums = np.zeros((len(rows), *w.shape[:2], SUMS), np.float32)
        for k in range(0, x.shape[2], SUMS):
            sums += rows[..., k : k + SUMS] * w[..., k : k + SUMS]
        while sums.shape[-1] > 1:
            sums = np.add(*np.split(sums, 2, axis=-1))
        found[start : start + step] = sums[..., 0]
    return found
