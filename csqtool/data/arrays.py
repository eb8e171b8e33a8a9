"""Data sets held as arrays, and what a data source hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.errors import DataError
from csqtool.task import Task

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Dataset(Protocol):
    """Anything with a length and items (input, target): torch's map-style data sets fit."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class ArrayDataset:
    """Inputs and targets as arrays: batches are slices, without a Python loop over samples.

    Args:
        inputs: [N, …]; integers are taken as they are and normalised to float32.
        targets: [N] or [N, …].
        mean, std: subtracted from and divided into the inputs, broadcast over [N, …].
    """

    def __init__(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        *,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.inputs = torch.from_numpy(np.ascontiguousarray(inputs))
        self.targets = torch.from_numpy(np.ascontiguousarray(targets))
        trailing = (1,) * (inputs.ndim - 2)
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, *trailing)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(-1, *trailing)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [B, …] and targets [B, …]."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return (self.inputs[chosen].float() - self.mean) / self.std, self.targets[chosen]


@dataclass(frozen=True)
class DataSource:
    """Training and test sets, the task, and the training set's augmentation.

    `augment(inputs, generator)` changes a batch of inputs; all its randomness comes from the generator.
    """

    name: str
    train: Dataset
    test: Dataset
    task: Task
    augment: Augmentation | None = None

    def problem(self) -> str | None:
        """Return why nothing can be trained or compared on these data, or None."""
        for part, dataset in (("training", self.train), ("test", self.test)):
            if len(dataset) == 0:
                return f"the {part} set of {self.name} is empty"
            if isinstance(dataset, ArrayDataset) and not bool(torch.isfinite(dataset.inputs).all()):
                return f"the {part} set of {self.name} holds inputs that are not finite"
        return None


def take(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the batch of `dataset` at `indices`: inputs [B, …] and targets [B, …]."""
    if isinstance(dataset, ArrayDataset):
        return dataset.batch(indices)
    from torch.utils.data import default_collate

    inputs, targets = default_collate([dataset[int(i)] for i in indices])
    return inputs, targets
