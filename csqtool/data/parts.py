"""What may be handed over as a training or test set, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from csqtool.data.arrays import ArrayDataset
from csqtool.data.data_source import DataSource, NotGiven, Part
from csqtool.data.datasets import as_tensor, whole_as_int64
from csqtool.data.streams import Stream
from csqtool.errors import DataError
from csqtool.task import Task

WHAT_TO_GIVE = "a data set, a DataLoader, a list of batches, a pair of arrays (inputs, targets) or a source name"

Array = NDArray[Any] | Tensor


def as_part(given: Any, name: str, task: Task) -> Part:
    """Return a training or test set as the rest of csqtool reads it.

    - A pair (inputs, targets) of arrays or tensors [N, …] becomes an `ArrayDataset`.
    - An object with a length and items is a map-style data set and stays as it is. A list is one too, unless its
      first item is a batch: two tensors with the same first axis.
    - A `DataLoader`, a list of batches, or any object that can be iterated again and again, becomes a `Stream`.

    Args:
        given: what the user handed over.
        name: what messages call it.
        task: decides whether the targets of arrays are labels.

    Raises:
        DataError: it can be read only once, or is something else.
    """
    if isinstance(given, Stream | NotGiven):
        return given
    if is_array_pair(given):
        inputs, targets = given
        return array_dataset(inputs, targets, task, where=name)
    if isinstance(given, Iterator):
        raise DataError(
            f"{name} is a {type(given).__name__} and can be read only once; give a list of its batches, or an object "
            "whose __iter__ starts a new pass each time, such as a DataLoader"
        )
    if isinstance(given, np.ndarray | Tensor):
        raise DataError(f"{name} is one array; give a pair (inputs, targets)")
    if isinstance(given, IterableDataset):
        raise DataError(f"{name} gives single samples in an order of its own; give DataLoader({name}, batch_size=…)")
    if isinstance(given, list | tuple):
        return Stream(given, name) if given and _is_batch(given[0]) else given
    if not isinstance(given, str | bytes | Mapping):
        if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
            part: Part = given
            return part
        if isinstance(given, Iterable):
            _refuse_shards(given, name)
            return Stream(given, name)
        if hasattr(given, "__getitem__"):
            raise DataError(f"{name}: {type(given).__name__} has no length (__len__), which a data set needs")
    raise DataError(f"{name} is {type(given).__name__}; give {WHAT_TO_GIVE}")


def readable(source: DataSource) -> DataSource:
    """Return `source` with its parts as `as_part` makes them: a factory may put a loader into it.

    Raises:
        DataError: a part is nothing that can be read.
    """
    train, test = (as_part(getattr(source, name), source.part_name(name), source.task) for name in ("train", "test"))
    return replace(source, train=train, test=test)


def is_array_pair(given: Any) -> bool:
    """Return whether `given` is a tuple of two arrays or tensors."""
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(a, np.ndarray | Tensor) for a in given)


def _is_batch(item: Any) -> bool:
    if not isinstance(item, tuple | list) or len(item) != 2:
        return False
    shapes = [part.shape for part in item if isinstance(part, np.ndarray | Tensor)]
    return len(shapes) == 2 and all(shapes) and shapes[0][0] == shapes[1][0]


def _refuse_shards(loader: Any, name: str) -> None:
    replicas = getattr(getattr(loader, "sampler", None), "num_replicas", 1)
    if isinstance(replicas, int) and replicas > 1:
        raise DataError(
            f"{name}: its {type(loader.sampler).__name__} gives each process other samples; give a loader with an "
            "ordinary sampler, each batch is shared out among the processes"
        )


def array_dataset(
    inputs: Array,
    targets: Array,
    task: Task,
    *,
    where: str,
    names: tuple[str, str] = ("inputs", "targets"),
    **normalisation: Any,
) -> ArrayDataset:
    """Return arrays as a data set; its targets are int64 where they are labels, float32 otherwise.

    Args:
        inputs: numbers [N, …]; integers become float32 in batches, as in ``npz:`` files.
        targets: [N] labels, or numbers [N, …].
        task: says which.
        where: what messages begin with.
        names: what messages call the two.
        normalisation: keywords of `ArrayDataset`.

    Raises:
        DataError: the arrays do not fit the task or each other.
    """
    for values, name in zip((inputs, targets), names, strict=True):
        if values.ndim < 1 or _kind(values) not in "fiub":
            raise DataError(f"{where}: {name} must be numbers of shape [N, …], got {_shown(values)}")
    if inputs.ndim < 2:
        raise DataError(f"{where}: {names[0]} must be numbers of shape [N, …], got {_shown(inputs)}")
    if task.labels and (targets.ndim != 1 or _kind(targets) not in "iu"):
        raise DataError(f"{where}: {names[1]} must be integer labels [N], got {_shown(targets)}")
    wanted = targets.detach() if isinstance(targets, Tensor) else as_tensor(targets)
    wanted = whole_as_int64(wanted) if task.labels else wanted.float()
    try:
        return ArrayDataset(inputs.detach() if isinstance(inputs, Tensor) else inputs, wanted, **normalisation)
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error


def _kind(values: Array) -> str:
    """Return numpy's letter for the kind of number: f, i, u, b, or another one."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind
    return "c" if values.is_complex() else "f" if values.is_floating_point() else "i"


def _shown(values: Array) -> str:
    return f"{values.dtype}{list(values.shape)}"
