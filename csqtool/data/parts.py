"""What may be handed over as a training or test set, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from csqtool.trees import children, tensors

WHAT_TO_GIVE = "a data set, a DataLoader, a list of batches, a pair of arrays (inputs, targets) or a source name"

Array = NDArray[Any] | Tensor


@dataclass(frozen=True)
class Rows:
    """A data set of Hugging Face's library, read row by row: its method ``batch`` is another one than ours."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


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
            part: Part = Rows(given) if type(given).__module__.partition(".")[0] == "datasets" else given
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
    """Return whether `given` is a tuple of inputs and targets: arrays or tensors, or a dict of inputs by name."""
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], np.ndarray | Tensor):
        return False
    inputs = given[0].values() if isinstance(given[0], Mapping) else [given[0]]
    return bool(inputs) and all(isinstance(array, np.ndarray | Tensor) for array in inputs)


def _is_batch(item: Any) -> bool:
    """Tell whether an item of a list is a batch: a dict of tensors, or inputs and targets with the same first axis."""
    pair = isinstance(item, tuple | list) and len(item) == 2
    if not pair and not isinstance(item, Mapping):
        return False
    parts = [item] if isinstance(item, Mapping) else item
    lengths = [[t.shape[0] if t.ndim else None for t in tensors(mapped_arrays(part))] for part in parts]
    return all(lengths) and len({length for part in lengths for length in part}) == 1 and lengths[0][0] is not None


def mapped_arrays(tree: Any) -> Any:
    """Return a tree with its arrays as tensors."""
    if isinstance(tree, np.ndarray):
        return as_tensor(tree)
    parts = None if isinstance(tree, Tensor) else children(tree)
    return tree if parts is None else [mapped_arrays(value) for _, value in parts]


def _refuse_shards(loader: Any, name: str) -> None:
    replicas = getattr(getattr(loader, "sampler", None), "num_replicas", 1)
    if isinstance(replicas, int) and replicas > 1:
        raise DataError(
            f"{name}: its {type(loader.sampler).__name__} gives each process other samples; give a loader with an "
            "ordinary sampler, each batch is shared out among the processes"
        )


def array_dataset(
    inputs: Array | Mapping[str, Array],
    targets: Array,
    task: Task,
    *,
    where: str,
    names: tuple[str, str] = ("inputs", "targets"),
    **normalisation: Any,
) -> ArrayDataset:
    """Return arrays as a data set; its targets are int64 where they are labels, float32 otherwise.

    Args:
        inputs: numbers [N, …], or a dict of them by name; see `ArrayDataset` for their types in batches.
        targets: [N] labels, or numbers [N, …].
        task: says which.
        where: what messages begin with.
        names: what messages call the two.
        normalisation: keywords of `ArrayDataset`.

    Raises:
        DataError: the arrays do not fit the task or each other.
    """
    several = inputs if isinstance(inputs, Mapping) else {"": inputs}
    called = {f"{names[0]}.{name}" if name else names[0]: values for name, values in several.items()}
    for name, values in {**called, names[1]: targets}.items():
        if values.ndim < 1 + (name != names[1]) or _kind(values) not in "fiub":
            raise DataError(f"{where}: {name} must be numbers of shape [N, …], got {_shown(values)}")
    if task.labels and (targets.ndim != 1 or _kind(targets) not in "iu"):
        raise DataError(f"{where}: {names[1]} must be integer labels [N], got {_shown(targets)}")
    wanted = targets.detach() if isinstance(targets, Tensor) else as_tensor(targets)
    wanted = whole_as_int64(wanted) if task.labels else wanted.float()
    try:
        plain = {name: v.detach() if isinstance(v, Tensor) else v for name, v in several.items()}
        return ArrayDataset(plain if isinstance(inputs, Mapping) else plain[""], wanted, **normalisation)
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error


def _kind(values: Array) -> str:
    """Return numpy's letter for the kind of number: f, i, u, b, or another one."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind
    return "c" if values.is_complex() else "f" if values.is_floating_point() else "i"


def _shown(values: Array) -> str:
    return f"{values.dtype}{list(values.shape)}"
