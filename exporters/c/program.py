"""The integer program that is written as C: values in the arena, and steps that compute them. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.c.fixed_point import Factor

INPUT = -1  # the buffer of the program's input, which the caller owns
LANES = 32  # decoded filters and windows end at a multiple of it
MOST_FILTERS = 16  # that are decoded at a time


@dataclass(frozen=True)
class Grid:
    """Where a quantized value lies: real = (integer − zero point)·scale, integers from `low` to `high`."""

    scale: np.float32
    zero_point: int
    low: int = 0
    high: int = 255


@dataclass(frozen=True)
class Value:
    """A quantized tensor of one sample.

    Attributes:
        buffer: where it lies; views share it.
        shape: PyTorch's sizes, without the batch.
        order: the axis of `shape` that each axis in memory is, outermost first.
        grid: what its integers mean.
    """

    buffer: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    grid: Grid

    @property
    def elements(self) -> int:
        """Number of integers, a byte each."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the arena."""
        return self.elements

    @property
    def stored(self) -> tuple[int, ...]:
        """Sizes of the axes in memory."""
        return tuple(self.shape[axis] for axis in self.order)


def same_order(shape: tuple[int, ...], one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two orders lay a tensor out the same way: axes of size 1 do not matter."""
    return [a for a in one if shape[a] > 1] == [a for a in other if shape[a] > 1]


@dataclass
class Step:
    """One call of a kernel.

    Attributes:
        inputs: what it reads: `Value`, or `exporters.c.float_steps.FloatValue`.
        output: what it writes, one of these; None if it writes the program's float output.
        place: the activation quantizer whose integers it writes; empty for values that no quantizer makes.
        placed: the quantizer's value: the output, or a view of it.
    """

    inputs: tuple[Any, ...]
    output: Any
    place: str = ""
    placed: Value | None = None

    @property
    def label(self) -> str:
        """What it is called for people."""
        return self.place or type(self).__name__

    @property
    def scratch_bytes(self) -> int:
        """Memory that the kernel needs for itself."""
        return 0

    @property
    def in_place(self) -> bool:
        """Whether the kernel may write where it reads: element i of the output needs element i of the inputs alone."""
        return False


@dataclass
class Window:
    """Geometry of a convolution or pooling, height before width; of one dimension, the height is 1."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]  # in front
    dilation: tuple[int, int] = (1, 1)
    spread: tuple[int, int] = (1, 1)  # neighbours of the input are so far apart, with zeros between (ConvTranspose)


@dataclass
class Conv(Step):
    """A convolution or linear layer; a linear layer is a 1×1 convolution over all positions.

    Attributes:
        layer: the parameter.
        window: its geometry.
        q: integers [channels, kernel height, kernel width, channels of a group].
        bias: integers [channels] in steps of the product, without the input's zero point.
        groups: as in PyTorch.
        factors: the factor of each channel, one if they are the same; empty where the result is computed in float32.
        steps: value of one unit of the sum, float32: of each channel, for float results; or in steps of the output's
            grid, one if they are the same, where results are rounded in float32.
        channels_first: whether float results are written [channels, positions] rather than [positions, channels].
        stored: how the integers are stored, set by `exporters.c.storage`.
        block: how many filters are decoded at a time, set by `exporters.c.memory`.
    """

    layer: str = ""
    window: Window = field(default_factory=lambda: Window((1, 1), (1, 1), (1, 1), (1, 1), (0, 0)))
    q: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 1, 1, 0), np.int8))
    bias: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: int = 1
    factors: list[Factor] = field(default_factory=list)
    steps: NDArray[np.float32] | None = None
    channels_first: bool = False
    stored: Any = None
    block: int = 1

    @property
    def label(self) -> str:
        """The parameter."""
        return self.layer

    @property
    def on_grid(self) -> bool:
        """Whether the result is rounded to a grid."""
        return isinstance(self.output, Value)

    @property
    def of_each(self) -> bool:
        """Whether each channel has a factor of its own in flash."""
        return not self.on_grid or len(self.factors) > 1 or (self.steps is not None and len(self.steps) > 1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is computed from the channel of the same number alone."""
        return self.groups > 1 and self.q.shape[3] == 1 and len(self.q) == self.groups

    @property
    def channel_wise(self) -> bool:
        """Whether the kernel for depthwise convolutions computes it, which holds all filters at once."""
        return self.is_depthwise and not self.stored.is_wide and self.on_grid and self.window.spread == (1, 1)

    @property
    def padded(self) -> int:
        """Bytes of a decoded filter's row, with zeros up to a multiple of what vectors hold."""
        count: int = self.q[0].size
        return -(-count // LANES) * LANES

    @property
    def filter_bytes(self) -> int:
        """Bytes of a decoded filter; one of nine bits takes two rows."""
        rows = 2 if self.stored.is_wide else 1
        return self.padded * rows

    @property
    def most_filters(self) -> int:
        """How many filters can be decoded at a time; 1 where the kernel decodes all anyway."""
        return 1 if self.channel_wise else min(MOST_FILTERS, len(self.q) // self.groups)

    @property
    def scratch_bytes(self) -> int:
        """Room for a window and the decoded filters; of a depthwise convolution, for all filters."""
        return self.q.size if self.channel_wise else self.padded + self.block * self.filter_bytes


@dataclass
class Binary(Step):
    """An addition (`multiplies` False) or product of two values; the second may be one value a channel.

    A sum is (a − z_a)·multipliers[0] + (b − z_b)·multipliers[1], a product (a − z_a)·(b − z_b)·multipliers[0]; in
    float32, `floats` takes the place of multipliers and shift: two factors of a sum, one of a product.
    """

    multiplies: bool = False
    multipliers: tuple[int, int] = (0, 0)
    shift: int = 1
    floats: NDArray[np.float32] | None = None

    @property
    def in_place(self) -> bool:
        """It is."""
        return True


@dataclass
class MaxPool(Step):
    """The largest integer of each window; what lies outside is left out."""

    window: Window = field(default_factory=lambda: Window((1, 1), (1, 1), (1, 1), (1, 1), (0, 0)))


@dataclass
class AveragePool(Step):
    """The mean of each window: `factors[n − 1]`, or in float32 `floats[n − 1]`, is the factor for n values."""

    window: Window = field(default_factory=lambda: Window((1, 1), (1, 1), (1, 1), (1, 1), (0, 0)))
    factors: list[Factor] = field(default_factory=list)
    floats: NDArray[np.float32] | None = None
    counts_padding: bool = False


@dataclass
class Table(Step):
    """y = table[x]."""

    table: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(256, np.uint8))

    @property
    def in_place(self) -> bool:
        """It is."""
        return True


@dataclass
class Take(Step):
    """A copy of some of the input's values; places outside of it become 0.

    Attributes:
        axes: the axis of the input in memory that each axis of the output in memory is.
        starts: by axis of the output, where it begins; below 0 outside.
        strides: by axis of the output.
    """

    axes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


@dataclass
class Concat(Step):
    """The inputs one after the other along an axis in memory, each through a table, or as it is (None)."""

    axis: int = 0
    tables: list[NDArray[np.uint8] | None] = field(default_factory=list)


@dataclass
class Upsample(Step):
    """Each value repeated, `factors` times along height and width; axes in memory are height, width, channels."""

    factors: tuple[int, int] = (1, 1)


@dataclass
class Dequantize(Step):
    """The program's float output: (q − zero point)·scale."""


@dataclass
class Program:
    """All steps of a network with one input and one output.

    Attributes:
        input: the input: a `Value`, or where no quantizer reads it, an `exporters.c.float_steps.FloatValue`.
        input_place: its quantizer's name, or nothing.
        output_shape: PyTorch's sizes of the float output, without the batch.
        steps: in the order that they run.
        sizes: bytes of each buffer.
    """

    input: Any
    input_place: str
    output_shape: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
