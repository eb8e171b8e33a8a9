"""From the text behind ``--data`` to a `DataSource`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.data.arrays import ArrayDataset, DataSource
from csqtool.data.augment import ShiftAndFlip
from csqtool.data.cifar import CIFAR10, CIFAR100, how_to_get
from csqtool.data.image_folder import LAYOUT, load_image_folder
from csqtool.errors import ConfigError, DataError, InputError, nearest
from csqtool.factories import call_factory, find_source, split_spec
from csqtool.task import Task, task_by_name

CLASSIFICATION = "classification"


def load_data(spec: str, *, task: str | None = None, near: Path | None = None) -> DataSource:
    """Return the data that `spec` names.

    Args:
        spec: ``digits``, ``cifar10:DIR``, ``cifar100:DIR``, ``imagefolder:DIR``, ``npz:FILE``, or a factory
            ``file.py:name`` / ``module:name`` that returns (train, test), (train, test, task) or a `DataSource`.
            Options stand behind a question mark: ``imagefolder:DIR?size=96&resize=112``.
        task: ``classification`` or ``regression``, for ``npz`` files and factories that name none.
        near: a file in whose folders relative paths are looked up when the working folder lacks them.

    Raises:
        ConfigError: there is no such source or option, or the source has another task.
        DataError: the data are missing or not what their name says.
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        source = _digits()
    elif kind in FILE_SOURCES and rest:
        source = _from_file(FILE_SOURCES[kind], spec, task, near)
    elif ":" in spec and (spec.rpartition(":")[0].endswith(".py") or kind not in FILE_SOURCES):
        source = _from_factory(spec, task, near)
    else:
        known = ["digits", *(f"{name}:PATH" for name in FILE_SOURCES), "file.py:factory"]
        raise ConfigError(f"unknown data {spec!r}; {nearest(spec, known)}")
    if task is not None and task_by_name(task).name != source.task.name:
        raise ConfigError(f"{spec} is data for {source.task.name}, not for {task}")
    return source


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``KIND:PATH?name=value&name=value`` into what stands before the question mark and the options.

    Raises:
        ConfigError: an option has no value.
    """
    plain, _, text = spec.partition("?")
    options = {}
    for pair in text.split("&") if text else ():
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{spec!r}: options are written ?name=value&name=value, got {pair!r}")
        options[name] = value
    return plain, options


@dataclass(frozen=True)
class FileSource:
    """A source that reads files of one kind.

    Attributes:
        load: called with the path, the task that was asked for and the options as keyword arguments.
        hint: what should be at the path, for the message when nothing is.
        options: what may stand behind the question mark; all are whole numbers.
    """

    load: Callable[..., DataSource]
    hint: str
    options: tuple[str, ...] = ()


def _from_file(kind: FileSource, spec: str, task: str | None, near: Path | None) -> DataSource:
    plain, given = split_options(spec)
    options = {}
    for name, value in given.items():
        if name not in kind.options:
            known = nearest(name, kind.options) if kind.options else "there are none for these data"
            raise ConfigError(f"{spec}: unknown option {name!r}; {known}")
        if not value.isdecimal():
            raise ConfigError(f"{spec}: {name} must be a whole number, got {value!r}")
        options[name] = int(value)
    path = plain.partition(":")[2]
    for folder in [Path(), *(near.resolve().parents if near else [])]:
        if (folder / path).exists():
            return kind.load(folder / path, task, **options)
    raise DataError(f"no such file or folder: {path}; {kind.hint}")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file, without trusting pickles.

    Raises:
        DataError: it is no such file, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays: {error}") from error


def _digits() -> DataSource:
    with resources.as_file(resources.files("csqtool.data") / "digits.npz") as path:
        arrays = read_arrays(path)
    arrays |= {"mean": np.asarray(4.884), "std": np.asarray(6.017)}
    source = _from_arrays("digits", arrays, task_by_name(CLASSIFICATION), stored="grey pixels 0 … 16")
    assert isinstance(source.train, ArrayDataset)
    return replace(source, augment=ShiftAndFlip(1, flip=False, fill=source.train.preprocessing.of_zero()))


def _npz(path: Path, task: str | None) -> DataSource:
    arrays = read_arrays(path)
    if missing := {"x_train", "y_train", "x_test", "y_test"} - set(arrays):
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}; {NPZ}")
    return _from_arrays(f"npz:{path}", arrays, task_by_name(task or CLASSIFICATION))


def _from_arrays(
    name: str, arrays: Mapping[str, NDArray[Any]], task: Task, *, stored: str = "values as stored"
) -> DataSource:
    target = np.int64 if task.labels else np.float32
    normalisation = {key: arrays[key].tolist() for key in ("mean", "std") if key in arrays}
    parts = {}
    for part in ("train", "test"):
        inputs, targets = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if inputs.ndim < 2 or inputs.dtype.kind not in "fiub":
            raise DataError(f"{name}: x_{part} must be numbers of shape [N, …], got {inputs.dtype}{list(inputs.shape)}")
        if task.labels and (targets.ndim != 1 or targets.dtype.kind not in "iu"):
            raise DataError(f"{name}: y_{part} must be integer labels [N], got {targets.dtype}{list(targets.shape)}")
        if targets.dtype.kind not in "fiub":
            raise DataError(f"{name}: y_{part} must be numbers, got {targets.dtype}")
        try:
            parts[part] = ArrayDataset(inputs, targets.astype(target), **normalisation, stored=stored)
        except (DataError, ValueError, TypeError) as error:
            raise DataError(f"{name}: the {part} part: {error}") from error
    return DataSource(name, parts["train"], parts["test"], task)


NPZ = "an .npz needs x_train, y_train, x_test, y_test, and may have mean and std"
FILE_SOURCES = {
    "cifar10": FileSource(lambda path, _: CIFAR10.load(path), how_to_get(CIFAR10)),
    "cifar100": FileSource(lambda path, _: CIFAR100.load(path), how_to_get(CIFAR100)),
    "imagefolder": FileSource(
        lambda path, _, **sizes: load_image_folder(path, **sizes), f"put {LAYOUT} there", ("size", "resize")
    ),
    "npz": FileSource(_npz, NPZ),
}


def _from_factory(spec: str, task: str | None, near: Path | None) -> DataSource:
    where, _ = split_spec(spec)
    if where.endswith(".py"):
        find_source(where, near=near)
    try:
        result = call_factory(spec, {}, near=near)
    except InputError as error:
        raise DataError(str(error)) from error
    if isinstance(result, DataSource):
        return result
    if not isinstance(result, tuple) or len(result) not in (2, 3) or not all(hasattr(p, "__len__") for p in result[:2]):
        raise DataError(f"the data factory {spec} must return (train, test) or (train, test, task)")
    given = result[2] if len(result) == 3 else task_by_name(task or CLASSIFICATION)
    return DataSource(spec, result[0], result[1], task_by_name(given) if isinstance(given, str) else given)
