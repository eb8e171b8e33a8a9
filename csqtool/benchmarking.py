"""Latency, load time, memory and size of ONNX files in onnxruntime, compared in one run.

Runs of the files are interleaved, so that other load on the machine slows all of them down equally. Compare ratios
of medians, not the times themselves. Loading is measured in separate processes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from csqtool import sandbox
from csqtool.documents import Count
from csqtool.errors import ConfigError, FormatError
from csqtool.files import read_bytes
from csqtool.onnx_file import parse_onnx
from csqtool.onnx_isolated import IsolatedSession, optimized_operators

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e300)]


class BenchResult(msgspec.Struct, frozen=True):
    """The measurements of one file.

    Attributes:
        file: its path.
        size_bytes: its size.
        median_ms: median latency of a run, milliseconds.
        ratio: `median_ms` over the first file's.
        load_ms: median time to load it in a fresh process, milliseconds.
        load_peak_bytes: median growth of the process's peak memory while loading.
        kernels: operators that onnxruntime runs, with counts.
    """

    file: str
    size_bytes: Count
    median_ms: Positive
    ratio: Positive
    load_ms: Positive
    load_peak_bytes: Count
    kernels: dict[str, Count]


class BenchDocument(msgspec.Struct, frozen=True):
    """The document that ``bench --json`` prints.

    Attributes:
        threads: threads of one operator.
        batch: samples a run.
        rounds: runs of each file.
        files: the measurements of each; ratios are to the first.
    """

    threads: Count
    batch: Count
    rounds: Count
    files: list[BenchResult]


def bench(
    files: Sequence[Path],
    *,
    threads: int = 1,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    rounds: int = 50,
    loads: int = 3,
) -> list[BenchResult]:
    """Measure files side by side.

    Args:
        files: ONNX files; ratios are to the first.
        threads: threads of one operator.
        batch: samples a run: the size of the inputs' first axis, if that is dynamic.
        sizes: sizes of the other dynamic axes, by the name or the number (from 0) that the axis has.
        rounds: runs of each file, interleaved.
        loads: fresh processes that load each file.

    Raises:
        ConfigError: a number is below 1, a dynamic axis has no size, or a size belongs to no axis.
        InputError: a file is missing.
        FormatError: onnxruntime does not load or run a file.
    """
    sizes = sizes or {}
    numbers = {"threads": threads, "batch": batch, "rounds": rounds, "loads": loads}
    for name, value in [*numbers.items(), *((f"the size of axis {axis}", size) for axis, size in sizes.items())]:
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    sessions, contents, kernels = [], [], []
    for file in files:
        contents.append(read_bytes(file))
        parse_onnx(contents[-1], where=str(file))
        try:
            sessions.append(IsolatedSession(contents[-1], threads=threads))
            kernels.append(dict(sorted(Counter(optimized_operators(contents[-1])).items())))
            shapes = input_shapes(sessions[-1], batch, sizes)
            sandbox.call("csqtool.onnx_worker:random_run", number=sessions[-1].number, shapes=shapes)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        except RuntimeError as error:
            raise FormatError(f"{file}: onnxruntime does not run it: {error}") from error
    dynamic = {key for loaded in sessions for key in _dynamic_axes(loaded)}
    if unused := sorted(sizes.keys() - dynamic):
        known = f"those are {', '.join(sorted(dynamic))}" if dynamic else "there is none"
        raise ConfigError(f"size of axis {unused[0]}: no file has such a dynamic axis; {known}")
    loaded_as = [loaded.number for loaded in sessions]
    longest = sandbox.shared().limits.seconds * rounds  # the limit is that of one run, which each file has held
    times = sandbox.call("csqtool.onnx_worker:times", longest, numbers=loaded_as, rounds=rounds)
    medians = [statistics.median(t) * 1000 for t in times]
    measured: list[list[dict[str, float]]] = [[] for _ in files]
    for _ in range(loads):
        for position, content in enumerate(contents):
            measured[position].append(_load_once(content, threads, where=files[position]))
    return [
        BenchResult(
            str(file), len(contents[i]), medians[i], medians[i] / medians[0],
            statistics.median(m["seconds"] for m in measured[i]) * 1000,
            int(statistics.median(m["peak_bytes"] for m in measured[i])), kernels[i],
        )
        for i, file in enumerate(files)
    ]  # fmt: skip


def input_shapes(loaded: Any, batch: int, sizes: Mapping[str, int] | None = None) -> dict[str, list[int]]:
    """Return the shapes of inputs that fit a session.

    Raises:
        ConfigError: a dynamic axis after the batch has no size.
    """
    return {
        value.name: [_size(value.name, i, axis, batch, sizes or {}) for i, axis in enumerate(value.shape)]
        for value in loaded.get_inputs()
    }


def _dynamic_axes(loaded: Any) -> set[str]:
    """Return the names and numbers of a session's dynamic axes."""
    axes = [
        (i, axis) for value in loaded.get_inputs() for i, axis in enumerate(value.shape) if not isinstance(axis, int)
    ]
    return {str(i) for i, _ in axes} | {axis for _, axis in axes if axis}


def _size(name: str, position: int, axis: int | str | None, batch: int, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    for key in (axis, str(position)):
        if key is not None and key in sizes:
            return sizes[key]
    if position == 0:
        return batch
    called = f"{axis} (axis {position} of {name})" if axis else f"{position} of {name}"
    raise ConfigError(f"the axis {called} is dynamic: give its size, such as --size {axis or position}=224")


def _load_once(content: bytes, threads: int, *, where: Path) -> dict[str, float]:
    """Return what loading takes in a process of its own."""
    fresh = sandbox.Sandbox()
    try:
        found: dict[str, float] = fresh.call("csqtool.onnx_worker:load_cost", content=content, threads=threads)
    except RuntimeError as error:
        raise FormatError(f"{where}: loading it in a separate process failed: {error}") from error
    finally:
        fresh.close()
    return found
