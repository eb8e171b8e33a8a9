"""Data sets held as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.data.datasets import Batch, as_tensor
from csqtool.data.preprocessing import Preprocessing, as_tuple
from csqtool.errors import DataError


class ArrayDataset:
    """Inputs and targets as arrays: batches are slices, without a Python loop over samples.

    Args:
        inputs: [N, …], arrays or tensors; integers are kept as they are and normalised to float32 in batches.
        targets: [N] or [N, …].
        mean, std: subtracted from and divided into the inputs; one number, or one a channel (axis 1).
        stored: what the inputs are, for the finalized model's record.

    Raises:
        DataError: there is no axis of samples, counts differ, values are no numbers, or mean and std do not fit the
            inputs.
    """

    def __init__(
        self,
        inputs: NDArray[Any] | Tensor,
        targets: NDArray[Any] | Tensor,
        *,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        stored: str = "values as stored",
    ) -> None:
        if not inputs.ndim or not targets.ndim:
            raise DataError("inputs and targets need an axis of samples, a single number has none")
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.preprocessing = Preprocessing(stored, as_tuple(mean), as_tuple(std))
        channels = len(self.preprocessing.mean)
        if channels > 1 and (inputs.ndim < 2 or inputs.shape[1] != channels):
            raise DataError(
                f"{channels} means and stds for inputs of shape {list(inputs.shape)}: one a channel (axis 1)"
            )
        self.inputs, self.targets = (
            as_tensor(part) if isinstance(part, np.ndarray) else part.cpu() for part in (inputs, targets)
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return inputs float32 [B, …] and targets [B, …]."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.preprocessing.normalise(self.inputs[chosen]), self.targets[chosen]
