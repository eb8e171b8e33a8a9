"""How a stored sample becomes a model's input; finalized models record it for whoever deploys them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csqtool.errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a sample: `steps`, then (x − mean) / std.

    Attributes:
        steps: a description of the steps before the normalization, such as ``RGB pixels 0 … 255``.
        mean, std: in the units of the stored values; one number, or one a channel.
    """

    steps: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0 or len(self.mean) != len(self.std):
            raise DataError(f"mean and std must be finite, std above 0, of one length; got {self.mean} and {self.std}")

    def normalise(self, samples: Tensor) -> Tensor:
        """Return (x − mean) / std of a batch [N, C, …] or [N, features], float32."""
        mean, std = (_channels(values, samples.ndim) for values in (self.mean, self.std))
        return (samples.float() - mean) / std

    def of_zero(self) -> tuple[float, ...]:
        """Return what a stored 0, black in an image, becomes: one number, or one a channel."""
        return tuple(((0 - torch.tensor(self.mean)) / torch.tensor(self.std)).tolist())

    def to_json(self) -> dict[str, Any]:
        """Return the preprocessing as a finalized model records it."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def as_tuple(values: Sequence[float] | float) -> tuple[float, ...]:
    """Return one number, or several, as a tuple."""
    return tuple(float(v) for v in np.atleast_1d(np.asarray(values, np.float64)).reshape(-1))


def _channels(values: tuple[float, ...], ndim: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, *(1,) * (ndim - 2))
