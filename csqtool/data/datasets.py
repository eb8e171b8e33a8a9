"""What a data set is: a length, and samples that can be read in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.errors import CsqtoolError, DataError
from csqtool.trees import children, mapped

# Inputs, as `csqtool.trees.call` takes them, and targets: a tensor [B, …] or any tree of them.
Batch = tuple[Any, Any]


class Dataset(Protocol):
    """Anything with a length and items (input, target): torch's map-style data sets fit."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that makes whole batches faster than item by item."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return inputs and targets, each a tensor [B, …] or a tree of them."""
        ...


@runtime_checkable
class SelfAugmenting(Protocol):
    """A training set that augments while it reads, as image files do: crops are cut before images are resized."""

    def augmented_batch(self, indices: Sequence[int], generator: torch.Generator) -> Batch:
        """Return an augmented batch; all randomness comes from `generator`."""
        ...


@runtime_checkable
class ShareAugmenting(SelfAugmenting, Protocol):
    """A `SelfAugmenting` set that makes a part of a batch without reading the rest."""

    def augmented_share(self, indices: Sequence[int], generator: torch.Generator, share: slice) -> Batch:
        """Return the samples `share` of the augmented batch of `indices`, exactly as they are in the whole batch."""
        ...


def take(dataset: Dataset, indices: Sequence[int]) -> Batch:
    """Return the batch of `dataset` at `indices`: inputs and targets; real numbers as float32.

    Raises:
        DataError: samples do not fit into one batch.
    """
    if isinstance(dataset, BatchDataset):
        return dataset.batch(indices)
    inputs, targets = collated(dataset, indices, "(input, target)")
    return as_inputs(inputs, "the input of a sample"), as_targets(targets, "the target of a sample")


def collated(dataset: Any, indices: Sequence[int], what: str) -> Any:
    """Return the samples at `indices` as torch collates them.

    Raises:
        DataError: they do not fit into one batch of `what`.
    """
    from torch.utils.data import default_collate

    try:
        batch = default_collate([dataset[int(i)] for i in indices])
        if what.startswith("("):
            inputs, targets = batch
            return inputs, targets
        return batch
    except CsqtoolError:
        raise
    except Exception as error:  # the data set is the user's code
        raise DataError(f"samples {list(indices)[:3]} … do not make a batch of {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what an exception says in one line; of one that a loader's worker caught, the line after its traceback."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[-1] if lines[0].startswith('Caught ') else ' '.join(lines)}"


def as_inputs(values: Any, what: str) -> Any:
    """Return a batch's inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.

    Arrays become tensors, and real numbers float32. None stands for an argument that is not given.

    Args:
        values: anything.
        what: its name, for the message.

    Raises:
        DataError: there is something else than tensors.
    """
    if isinstance(values, np.ndarray):
        values = as_tensor(values)
    if isinstance(values, Tensor):
        return values.float() if values.is_floating_point() else values
    if isinstance(values, Mapping):
        return {name: _argument(value, f"{what} {name!r}") for name, value in values.items()}
    if isinstance(values, list | tuple):
        return tuple(_argument(value, f"{what}, part {i},") for i, value in enumerate(values))
    raise DataError(f"{what} is {type(values).__name__}; give a tensor, a tuple of tensors, or a dict of them by name")


def _argument(value: Any, what: str) -> Any:
    if value is None or children(value):
        return mapped(value, lambda tensor: as_inputs(tensor, what))
    return as_inputs(value, what)


def as_targets(values: Any, what: str) -> Any:
    """Return a batch's targets: arrays as tensors, real numbers as float32 and whole ones as int64.

    Args:
        values: a tensor, or any tree of them; a task of the user's decides what it needs.
        what: its name, for the message.

    Raises:
        DataError: there is no tensor, or an array that holds no numbers.
    """
    if isinstance(values, np.ndarray):
        values = as_tensor(values)
    if not isinstance(values, Tensor) and children(values) is None:
        raise DataError(f"{what} is {type(values).__name__}; give a tensor, or a tuple, list or dict of them")
    return mapped(values, lambda t: t.float() if t.is_floating_point() else whole_as_int64(t))


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
