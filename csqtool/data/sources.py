"""From the text behind ``--data`` to a `DataSource`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.data.arrays import ArrayDataset
from csqtool.data.augment import ShiftAndFlip
from csqtool.data.cifar import CIFAR10, CIFAR100, how_to_get
from csqtool.data.coco import LAYOUT as COCO
from csqtool.data.coco import load_coco
from csqtool.data.data_source import DataSource
from csqtool.data.hf_datasets import LAYOUT as SAVED
from csqtool.data.hf_datasets import load_saved_datasets
from csqtool.data.image_folder import LAYOUT, load_image_folder
from csqtool.data.npz import read_arrays
from csqtool.data.parts import array_dataset, as_part, readable
from csqtool.data.shards import LAYOUT as SHARDS
from csqtool.data.shards import load_shards
from csqtool.data.synthetic import EXAMPLE, Synthetic, checked_task, parse_shape
from csqtool.errors import ConfigError, DataError, InputError, nearest
from csqtool.factories import call_factory, find_source, split_spec
from csqtool.task import Task, as_task


def load_data(
    spec: str, *, task: str | Task | None = None, near: Path | None = None, recorded: bool = False
) -> DataSource:
    """Return the data that `spec` names.

    Args:
        spec: ``digits``, ``cifar10:DIR``, ``cifar100:DIR``, ``imagefolder:DIR``, ``webdataset:DIR``,
            ``hf-datasets:DIR``, ``coco:DIR``, ``npz:FILE``, ``none:3x32x32``, or a factory ``file.py:name`` /
            ``module:name`` that returns (train, test), (train, test, task) or a `DataSource`; its parts are what
            `as_part` takes. Options follow a question mark: ``imagefolder:DIR?size=96&resize=112``.
        task: ``classification`` or ``regression``, for ``npz`` files and factories that name none, or an object of
            the `Task` protocol, which takes the place of the data's own.
        near: a file in whose folders relative paths are looked up when the working folder lacks them.
        recorded: whether a file names a factory, not the user; see `csqtool.trust`.

    Raises:
        ConfigError: there is no such source or option, or the source has another task.
        DataError: the data are missing or not what their name says.
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        source = _digits()
    elif kind == "none":
        source = _none(spec, task)
    elif kind in FILE_SOURCES and rest:
        if recorded and rest.startswith(("\\\\", "//")):
            raise DataError(
                f"{near or 'the model'} names data on another machine, {spec!r}; give --data DATA, or data="
            )
        source = _from_file(FILE_SOURCES[kind], spec, task, near)
    elif ":" in spec and (spec.rpartition(":")[0].endswith(".py") or kind not in FILE_SOURCES):
        source = _from_factory(spec, task, near, recorded)
    else:
        known = ["digits", EXAMPLE, *(f"{name}:PATH" for name in FILE_SOURCES), "file.py:factory"]
        raise ConfigError(f"unknown data {spec!r}; {nearest(spec, known)}")
    return replace(source, source=spec).with_task(task)


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``KIND:PATH?name=value&name=value`` into what comes before the question mark and the options.

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
        options: names that may follow the question mark; all take whole numbers.
    """

    load: Callable[..., DataSource]
    hint: str
    options: tuple[str, ...] = ()


def whole_options(spec: str, allowed: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Split a source like `split_options` into text and options, which must be whole numbers with known names.

    Raises:
        ConfigError: one is not.
    """
    plain, given = split_options(spec)
    options = {}
    for name, value in given.items():
        if name not in allowed:
            known = nearest(name, allowed) if allowed else "there are none for these data"
            raise ConfigError(f"{spec}: unknown option {name!r}; {known}")
        if not value.isdecimal():
            raise ConfigError(f"{spec}: {name} must be a whole number, got {value!r}")
        options[name] = int(value)
    return plain, options


def _none(spec: str, task: str | Task | None) -> DataSource:
    plain, options = whole_options(spec, ("samples", "steps"))
    for name, least in (("samples", 2), ("steps", 1)):
        if not least <= options.get(name, least) <= 1 << 16:
            raise ConfigError(f"{spec}: {name} must be {least} to {1 << 16}, got {options[name]}")
    made = Synthetic(parse_shape(plain), **options)
    return DataSource(plain, made, made, checked_task(task))


def _from_file(kind: FileSource, spec: str, task: str | Task | None, near: Path | None) -> DataSource:
    plain, options = whole_options(spec, kind.options)
    path = plain.partition(":")[2]
    for folder in [Path(), *(near.resolve().parents if near else [])]:
        if (folder / path).exists():
            return kind.load(folder / path, task, **options)
    raise DataError(f"no such file or folder: {path}; {kind.hint}")


def _digits() -> DataSource:
    with resources.as_file(resources.files("csqtool.data") / "digits.npz") as path:
        arrays = read_arrays(path)
    arrays |= {"mean": np.asarray(4.884), "std": np.asarray(6.017)}
    source = _from_arrays("digits", arrays, as_task(None), stored="grey pixels 0 … 16")
    assert isinstance(source.train, ArrayDataset)
    return replace(source, augment=ShiftAndFlip(1, flip=False, fill=source.train.preprocessing.of_zero()))


def _npz(path: Path, task: str | Task | None) -> DataSource:
    arrays = read_arrays(path)
    inputs = {part: _named_arrays(arrays, part) for part in ("x_train", "x_test")}
    missing = [name for name in ARRAYS if name not in arrays and not inputs.get(name)]
    if missing:
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}; {NPZ}")
    if not any(inputs.values()):
        return _from_arrays(f"npz:{path}", arrays, as_task(task))
    names = {part: sorted(found) for part, found in inputs.items()}
    if names["x_train"] != names["x_test"]:
        raise DataError(f"{path}: the inputs are {names['x_train']} in training and {names['x_test']} in the test set")
    train, test = (
        array_dataset(inputs[x], arrays[y], as_task(task), where=f"npz:{path}", names=(x, y))
        for x, y in (("x_train", "y_train"), ("x_test", "y_test"))
    )
    return DataSource(f"npz:{path}", train, test, as_task(task))


def _named_arrays(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """Return the arrays called PART.NAME, by NAME."""
    return {name.partition(".")[2]: values for name, values in arrays.items() if name.startswith(f"{part}.")}


def _from_arrays(
    name: str, arrays: Mapping[str, NDArray[Any]], task: Task, *, stored: str = "values as stored"
) -> DataSource:
    normalisation = {key: arrays[key].tolist() for key in NORMALISATION if key in arrays}
    train, test = (
        array_dataset(arrays[x], arrays[y], task, where=name, names=(x, y), **normalisation, stored=stored)
        for x, y in (("x_train", "y_train"), ("x_test", "y_test"))
    )
    return DataSource(name, train, test, task)


ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NORMALISATION = ("mean", "std")
NPZ = "an .npz needs x_train, y_train, x_test, y_test (of several inputs x_train.NAME), and may have mean and std"
FILE_SOURCES = {
    "cifar10": FileSource(lambda path, _: CIFAR10.load(path), how_to_get(CIFAR10)),
    "cifar100": FileSource(lambda path, _: CIFAR100.load(path), how_to_get(CIFAR100)),
    "imagefolder": FileSource(
        lambda path, _, **sizes: load_image_folder(path, **sizes), f"put {LAYOUT} there", ("size", "resize")
    ),
    "coco": FileSource(load_coco, f"put {COCO} there", ("size",)),
    "npz": FileSource(_npz, NPZ),
    "hf-datasets": FileSource(load_saved_datasets, f"put {SAVED} there", ("size", "resize")),
    "webdataset": FileSource(
        lambda path, _, **sizes: load_shards(path, **sizes), f"put {SHARDS} there", ("size", "resize")
    ),
}


def _from_factory(spec: str, task: str | Task | None, near: Path | None, recorded: bool) -> DataSource:
    where, _ = split_spec(spec)
    if where.endswith(".py") and not recorded:
        find_source(where, near=near)
    try:
        result = call_factory(spec, {}, near=near, recorded=recorded)
    except InputError as error:
        raise DataError(str(error)) from error
    if isinstance(result, DataSource):
        return readable(result)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise DataError(f"the data factory {spec} must return (train, test) or (train, test, task)")
    given = as_task(result[2] if len(result) == 3 else task)
    train, test = (
        as_part(part, f"the {name} set of {spec}", given)
        for part, name in zip(result[:2], ("training", "test"), strict=True)
    )
    return DataSource(spec, train, test, given)
