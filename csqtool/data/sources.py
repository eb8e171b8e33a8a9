"""From the text behind ``--data`` to a `DataSource`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.data.arrays import ArrayDataset, DataSource
from csqtool.data.augment import ShiftAndFlip
from csqtool.errors import ConfigError, DataError, InputError, nearest
from csqtool.factories import call_factory, find_source, split_spec
from csqtool.task import Task, task_by_name


def load_data(spec: str, *, task: str | None = None, near: Path | None = None) -> DataSource:
    """Return the data that `spec` names.

    Args:
        spec: ``digits``, ``cifar10:DIR``, ``npz:FILE``, or a factory ``file.py:name`` / ``module:name`` that
            returns (train, test) or (train, test, task).
        task: ``classification`` or ``regression``, for ``npz`` files and factories that name none.
        near: a file in whose folders relative paths are looked up when the working folder lacks them.

    Raises:
        ConfigError: there is no such source.
        DataError: the data are missing or not what their name says.
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        source = _digits()
    elif kind in _FILE_SOURCES and rest:
        source = _FILE_SOURCES[kind](_existing(rest, near), task)
    elif ":" in spec and (spec.rpartition(":")[0].endswith(".py") or kind not in _FILE_SOURCES):
        source = _from_factory(spec, task, near)
    else:
        known = ["digits", *(f"{name}:PATH" for name in _FILE_SOURCES), "file.py:factory"]
        raise ConfigError(f"unknown data {spec!r}; {nearest(spec, known)}")
    return source


def _existing(path: str, near: Path | None) -> Path:
    folders = [Path()] + (list(near.resolve().parents) if near else [])
    for folder in folders:
        if (folder / path).exists():
            return folder / path
    raise DataError(f"no such file or folder: {path}")


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
    # Pixels are 0 … 16.
    with resources.as_file(resources.files("csqtool.data") / "digits.npz") as path:
        arrays = read_arrays(path)
    source = _from_arrays("digits", arrays, task_by_name("classification"), mean=4.884, std=6.017)
    return replace(source, augment=ShiftAndFlip(1, flip=False))


def _npz(path: Path, task: str | None) -> DataSource:
    arrays = read_arrays(path)
    if missing := {"x_train", "y_train", "x_test", "y_test"} - set(arrays):
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}; an .npz needs x_train, y_train, x_test, y_test")
    return _from_arrays(f"npz:{path}", arrays, task_by_name(task or "classification"))


def _from_arrays(
    name: str, arrays: dict[str, NDArray[Any]], task: Task, *, mean: float = 0.0, std: float = 1.0
) -> DataSource:
    target = np.int64 if task.labels else np.float32
    parts = {}
    for part in ("train", "test"):
        inputs, targets = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if inputs.ndim < 2 or inputs.dtype.kind not in "fiub":
            raise DataError(f"{name}: x_{part} must be numbers of shape [N, …], got {inputs.dtype}{list(inputs.shape)}")
        if task.labels and (targets.ndim != 1 or targets.dtype.kind not in "iu"):
            raise DataError(f"{name}: y_{part} must be integer labels [N], got {targets.dtype}{list(targets.shape)}")
        parts[part] = ArrayDataset(inputs, targets.astype(target), mean=mean, std=std)
    return DataSource(name, parts["train"], parts["test"], task)


CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32


def _cifar10(folder: Path, _task: str | None) -> DataSource:
    """CIFAR-10 in its canonical binary layout, ``data_batch_1.bin`` … and ``test_batch.bin``."""
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"

    def read(names: list[str]) -> ArrayDataset:
        records = []
        for name in names:
            try:
                raw = np.fromfile(folder / name, np.uint8)
            except OSError as error:
                raise DataError(f"cannot read {folder / name}: {error.strerror or error}") from error
            if raw.size == 0 or raw.size % CIFAR_RECORD_BYTES:
                raise DataError(f"{folder / name}: {raw.size} bytes are not records of {CIFAR_RECORD_BYTES} bytes")
            records.append(raw.reshape(-1, CIFAR_RECORD_BYTES))
        rows = np.concatenate(records)
        if int(rows[:, 0].max()) > 9:
            raise DataError(f"{folder}: a label above 9, so this is not CIFAR-10")
        images = rows[:, 1:].reshape(-1, 3, 32, 32)  # (N, channel, row, column)
        return ArrayDataset(
            images,
            rows[:, 0].astype(np.int64),
            mean=[255 * 0.485, 255 * 0.456, 255 * 0.406],
            std=[255 * 0.229, 255 * 0.224, 255 * 0.225],
        )

    train = read([f"data_batch_{i}.bin" for i in range(1, 6)])
    return DataSource(f"cifar10:{folder}", train, read(["test_batch.bin"]), task_by_name("classification"),
                      augment=ShiftAndFlip(4, flip=True))  # fmt: skip


_FILE_SOURCES: dict[str, Callable[[Path, str | None], DataSource]] = {"cifar10": _cifar10, "npz": _npz}


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
    given = result[2] if len(result) == 3 else task_by_name(task or "classification")
    return DataSource(spec, result[0], result[1], task_by_name(given) if isinstance(given, str) else given)
