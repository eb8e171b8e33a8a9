"""What a data set is: a length, and samples that can be read in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.errors import CsqtoolError, DataError

Batch = tuple[Tensor, Tensor]  # inputs [B, …], targets [B, …]


class Dataset(Protocol):
    """Anything with a length and items (input, target): torch's map-style data sets fit."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that makes whole batches faster than item by item."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return inputs float32 [B, …] and targets [B, …]."""
        ...


@runtime_checkable
class SelfAugmenting(Protocol):
    """A training set that augments while it reads, as image files do: crops are cut before images are resized."""

    def augmented_batch(self, indices: Sequence[int], generator: torch.Generator) -> Batch:
        """Return an augmented batch; all randomness comes from `generator`."""
        ...


def take(dataset: Dataset, indices: Sequence[int]) -> Batch:
    """Return the batch of `dataset` at `indices`: inputs [B, …] and targets [B, …]; real numbers as float32.

    Raises:
        DataError: samples do not fit into one batch.
    """
    if isinstance(dataset, BatchDataset):
        return dataset.batch(indices)
    from torch.utils.data import default_collate

    try:
        inputs, targets = default_collate([dataset[int(i)] for i in indices])
    except CsqtoolError:
        raise
    except Exception as error:  # the data set is the user's code
        raise DataError(
            f"samples {list(indices)[:3]} … do not make a batch of (input, target): {reason(error)}"
        ) from error
    return single(inputs, "the input of a sample"), whole_as_int64(single(targets, "the target of a sample"))


def reason(error: Exception) -> str:
    """Return what an exception says in one line; of one that a loader's worker caught, the line after its traceback."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[-1] if lines[0].startswith('Caught ') else ' '.join(lines)}"


def single(values: Any, what: str) -> Tensor:
    """Return `values`, which must be one tensor; real numbers as float32.

    Args:
        values: anything.
        what: its name, for the message.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(values, Tensor):
        parts = f" of {len(values)}" if isinstance(values, list | tuple | dict) else ""
        raise DataError(
            f"{what} is {type(values).__name__}{parts}; search and verify take samples of one tensor in and one "
            "tensor out"
        )
    return values.float() if values.is_floating_point() else values


def whole_as_int64(targets: Tensor) -> Tensor:
    """Return whole numbers as int64, which losses of class labels need; real numbers as they are."""
    return targets if targets.is_floating_point() else targets.long()


WIDER = {"u2": np.int32, "u4": np.int64, "u8": np.int64}  # torch cannot index tensors of these


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return the values of an array as a tensor, in memory of its own where torch cannot use the array's.

    Raises:
        DataError: the values are no numbers.
    """
    if array.dtype.kind not in "fiub":
        raise DataError(f"values must be numbers, got {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    native = WIDER.get(array.dtype.str[1:], array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(array, native, requirements=["C", "W"]))
