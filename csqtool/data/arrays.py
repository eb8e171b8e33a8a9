"""Data sets held as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.data.datasets import Batch, as_tensor
from csqtool.data.preprocessing import Preprocessing, as_tuple
from csqtool.errors import DataError
from csqtool.trees import mapped


class ArrayDataset:
    """Inputs and targets as arrays: batches are slices, without a Python loop over samples.

    In batches inputs are float32; but int32, int64 and bool, which are numbers of tokens and masks, stay what they are
    unless mean or std are given.

    Args:
        inputs: [N, …], arrays or tensors; or a dict of them by the names of the model's parameters.
        targets: [N] or [N, …].
        mean, std: subtracted from and divided into the inputs; one number, or one a channel (axis 1). For one array.
        stored: what the inputs are, for the finalized model's record.

    Raises:
        DataError: there is no axis of samples, counts differ, values are no numbers, or mean and std do not fit the
            inputs.
    """

    def __init__(
        self,
        inputs: NDArray[Any] | Tensor | Mapping[str, NDArray[Any] | Tensor],
        targets: NDArray[Any] | Tensor,
        *,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        stored: str = "values as stored",
    ) -> None:
        self.preprocessing = Preprocessing(stored, as_tuple(mean), as_tuple(std))
        named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        for name, values in {**named, "targets": targets}.items():
            if not values.ndim:
                raise DataError(f"{name} need an axis of samples, a single number has none")
            if len(values) != len(targets):
                raise DataError(f"{len(values)} {name} but {len(targets)} targets")
        channels = len(self.preprocessing.mean)
        self._normalises = self.preprocessing != Preprocessing(stored)
        if self._normalises and isinstance(inputs, Mapping):
            raise DataError("mean and std are for one array of inputs, not for several")
        if channels > 1 and (inputs.ndim < 2 or inputs.shape[1] != channels):  # type: ignore[union-attr]
            raise DataError(
                f"{channels} means and stds for inputs of shape {list(inputs.shape)}: "  # type: ignore[union-attr]
                "one a channel (axis 1)"
            )
        self.inputs: Any = (
            {n: _tensor(v) for n, v in inputs.items()} if isinstance(inputs, Mapping) else _tensor(inputs)
        )
        self.targets = _tensor(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        inputs, targets = self.batch([index])
        return mapped(inputs, lambda tensor: tensor[0]), targets[0]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return inputs [B, …], or a dict of them, and targets [B, …]."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        return mapped(self.inputs, lambda values: self._as_input(values[at])), self.targets[at]

    def _as_input(self, values: Tensor) -> Tensor:
        if not self._normalises and values.dtype in (torch.int32, torch.int64, torch.bool):
            return values
        return self.preprocessing.normalise(values)


def _tensor(values: NDArray[Any] | Tensor) -> Tensor:
    return as_tensor(values) if isinstance(values, np.ndarray) else values.cpu()
