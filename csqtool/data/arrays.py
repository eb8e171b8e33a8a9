"""Data sets held as arrays, and what a data source hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.data.preprocessing import Preprocessing, as_tuple
from csqtool.errors import DataError
from csqtool.task import Task

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Dataset(Protocol):
    """Anything with a length and items (input, target): torch's map-style data sets fit."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that makes whole batches faster than item by item."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [B, …] and targets [B, …]."""
        ...


@runtime_checkable
class SelfAugmenting(Protocol):
    """A training set that augments while it reads, as image files do: crops are cut before images are resized."""

    def augmented_batch(self, indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return an augmented batch; all randomness comes from `generator`."""
        ...


class ArrayDataset:
    """Inputs and targets as arrays: batches are slices, without a Python loop over samples.

    Args:
        inputs: [N, …]; integers are taken as they are and normalised to float32.
        targets: [N] or [N, …].
        mean, std: subtracted from and divided into the inputs; one number, or one a channel (axis 1).
        stored: what the inputs are, for the finalized model's record.

    Raises:
        DataError: counts differ, or mean and std do not fit the inputs.
    """

    def __init__(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        *,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        stored: str = "values as stored",
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.preprocessing = Preprocessing(stored, as_tuple(mean), as_tuple(std))
        channels = len(self.preprocessing.mean)
        if channels > 1 and (inputs.ndim < 2 or inputs.shape[1] != channels):
            raise DataError(
                f"{channels} means and stds for inputs of shape {list(inputs.shape)}: one a channel (axis 1)"
            )
        self.inputs, self.targets = (
            torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (inputs, targets)
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [B, …] and targets [B, …]."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.preprocessing.normalise(self.inputs[chosen]), self.targets[chosen]


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

    def training_batch(self, indices: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs [B, …] and targets of a training batch, augmented: a function of indices and `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.train, SelfAugmenting):
            inputs, targets = self.train.augmented_batch(indices, generator)
        else:
            inputs, targets = take(self.train, indices)
        return (self.augment(inputs, generator) if self.augment else inputs), targets

    def facts(self) -> dict[str, Any]:
        """Return what a finalized model records of its data: the task, and the preprocessing where it is known."""
        preprocessing = getattr(self.test, "preprocessing", None)
        known = {"preprocessing": preprocessing.to_json()} if isinstance(preprocessing, Preprocessing) else {}
        return {"task": self.task.name, **known}


def take(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the batch of `dataset` at `indices`: inputs [B, …] and targets [B, …]; real numbers as float32.

    Raises:
        DataError: samples do not fit into one batch.
    """
    if isinstance(dataset, BatchDataset):
        return dataset.batch(indices)
    from torch.utils.data import default_collate

    try:
        inputs, targets = default_collate([dataset[int(i)] for i in indices])
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"samples {list(indices)[:3]} … do not make a batch of (input, target): {error}") from error
    return _single(inputs, "input"), _single(targets, "target")


def _single(values: Any, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        parts = f" of {len(values)}" if isinstance(values, list | tuple | dict) else ""
        raise DataError(
            f"the {what} of a sample is {type(values).__name__}{parts}; search and verify take samples of one tensor "
            "in and one tensor out"
        )
    return values.float() if values.is_floating_point() else values
