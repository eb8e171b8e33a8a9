"""Values in float32 and the kernels that compute them, where no quantizer stands between two operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.c.program import Step

CONSTANT = -2  # the buffer of what lies in flash


@dataclass(frozen=True, eq=False)
class FloatValue:
    """A float32 tensor of one sample, in PyTorch's order.

    Attributes:
        buffer: where it lies; views share it.
        shape: PyTorch's sizes, without the batch.
        data: of a constant.
    """

    buffer: int
    shape: tuple[int, ...]
    data: NDArray[np.float32] | None = None

    @property
    def elements(self) -> int:
        """Number of floats."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the arena."""
        return 4 * self.elements


class Numbers(FloatValue):
    """Whole numbers of 32 bits, which only an embedding reads."""


@dataclass(frozen=True, eq=False)
class FloatPart(FloatValue):
    """A value from one of its bytes on, which a step of several writes.

    Attributes:
        offset: that byte.
    """

    offset: int = 0


@dataclass
class FloatStep(Step):
    """One call of a kernel by its arguments, as of those that read or write floats.

    Attributes:
        kernel: its name.
        arguments: in the order of the call: values, numbers, words, arrays (int32 or float32), which are written out.
        may_overwrite: whether the kernel may write where it reads.
    """

    kernel: str = ""
    arguments: list[Any] = field(default_factory=list)
    may_overwrite: bool = False

    @property
    def in_place(self) -> bool:
        """As `may_overwrite` says."""
        return self.may_overwrite
