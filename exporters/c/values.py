"""The program while it is built: buffers, steps and the order of axes in memory."""

from __future__ import annotations

from math import prod

from exporters.c.graph import Graph
from exporters.c.program import Grid, Step, Take, Value, same_order


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the order in memory in which channels, the first axis, are innermost."""
    return (*range(1, rank), 0)


def plain(rank: int) -> tuple[int, ...]:
    """Return PyTorch's own order."""
    return tuple(range(rank))


class Values:
    """Buffers and steps of a program.

    Args:
        graph: what is translated.
        in_float: whether results are moved to their grids in float32, not by integers.
    """

    def __init__(self, graph: Graph, *, in_float: bool = False) -> None:
        self.graph = graph
        self.in_float = in_float
        self.steps: list[Step] = []
        self.sizes: list[int] = []

    def new(self, shape: tuple[int, ...], order: tuple[int, ...], grid: Grid) -> Value:
        """Return a value on a buffer of its own."""
        return Value(self.reserve(prod(shape)), shape, order, grid)

    def reserve(self, size_bytes: int) -> int:
        """Return a new buffer."""
        self.sizes.append(size_bytes)
        return len(self.sizes) - 1

    def add(self, step: Step) -> Value:
        """Append a step and return its output."""
        self.steps.append(step)
        assert isinstance(step.output, Value)
        return step.output

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """Return a value with its axes in another order in memory; it is copied where that makes a difference."""
        if same_order(value.shape, value.order, order):
            return Value(value.buffer, value.shape, order, value.grid)
        rank = len(order)
        output = self.new(value.shape, order, value.grid)
        axes = tuple(value.order.index(axis) for axis in order)
        return self.add(Take((value,), output, axes=axes, starts=(0,) * rank, strides=(1,) * rank))
