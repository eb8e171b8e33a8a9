"""From what a user hands over in Python to a `DataSource`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csqtool.data.data_source import OBJECTS, DataSource, NotGiven, Part
from csqtool.data.parts import WHAT_TO_GIVE, as_part, is_array_pair, readable
from csqtool.data.sources import load_data
from csqtool.data.streams import Stream
from csqtool.errors import ConfigError
from csqtool.task import Task, as_task

BOTH = ("train", "test")


def as_source(
    data: Any = None,
    *,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    near: Path | None = None,
    needs: Sequence[str] = BOTH,
    batch_size: int | None = None,
) -> DataSource:
    """Return the data that a user handed over, by name or as objects.

    Args:
        data: a source name, a `DataSource`, or a tuple (train, test) or (train, test, task). Where one part alone is
            needed, it may also be that part.
        train: instead of `data`: a map-style data set, a `DataLoader`, any other object that gives its batches
            (inputs, targets) anew each time it is iterated, a pair of arrays or tensors (inputs, targets), or the name
            of a source whose part is taken.
        test: the same for the test set.
        task: ``classification`` (the default), ``regression``, or an object of the `Task` protocol.
        near: a file in whose folders relative paths are looked up when the working folder lacks them.
        needs: which of ``train`` and ``test`` the caller will read.
        batch_size: the setting, if it was given beside the data: a loader brings its own.

    Returns:
        The data; its `source` is the name to load them by again, None where they are objects.

    Raises:
        ConfigError: a part that is needed is missing, or arguments exclude each other.
        DataError: a part cannot be read, or can be read only once.
    """
    if data is None:
        source = _of_parts(train, test, task, near)
    elif train is not None or test is not None:
        raise ConfigError("data was given and train or test as well; give data, or train and test")
    elif isinstance(data, str):
        source = load_data(data, task=task, near=near)
    elif isinstance(data, DataSource):
        source = readable(data).with_task(task)
    elif (
        isinstance(data, tuple | list)
        and len(data) in (2, 3)
        and not is_array_pair(data)
        and (isinstance(data, tuple) or len(needs) > 1)
    ):
        source = _of_parts(data[0], data[1], data[2] if len(data) == 3 and task is None else task, near)
    elif len(needs) == 1:
        source = _of_parts(data if needs[0] == "train" else None, data if needs[0] == "test" else None, task, near)
    else:
        raise ConfigError(
            f"data must be a source name or a pair (train, test) here; give train and test apart, each {WHAT_TO_GIVE}"
        )
    for part in needs:
        if isinstance(getattr(source, part), NotGiven):
            raise ConfigError(f"no {'training' if part == 'train' else 'test'} data; give {part}: {WHAT_TO_GIVE}")
    if batch_size is not None and isinstance(source.train, Stream):
        raise ConfigError(
            f"batch_size {batch_size} goes with data sets; {source.train.name} is a loader that makes its own batches: "
            "set the size there"
        )
    return source


def _of_parts(train: Any, test: Any, task: str | Task | None, near: Path | None) -> DataSource:
    given = {name: part for name, part in (("train", train), ("test", test)) if part is not None}
    names = {part for part in given.values() if isinstance(part, str)}
    loaded = {name: load_data(name, task=task, near=near) for name in sorted(names)}
    for source in loaded.values():
        task = source.task if task is None else task
    judged_by = as_task(task)
    for name, source in loaded.items():
        if source.task.name != judged_by.name:
            raise ConfigError(f"{name} is data for {source.task.name}, not for {judged_by.name}")

    def part(name: str) -> Part:
        if name not in given:
            return NotGiven(name)
        value = given[name]
        found: Part = getattr(loaded[value], name) if isinstance(value, str) else as_part(value, name, judged_by)
        return found

    whole = DataSource(OBJECTS, part("train"), part("test"), judged_by)
    if isinstance(train, str):
        whole = replace(whole, augment=loaded[train].augment)
    if len(names) == 1 and all(isinstance(value, str) for value in given.values()):
        (source,) = loaded.values()
        whole = replace(whole, name=source.name, source=source.source)
    return whole
