"""Converts arguments of the Python interface into the engine's types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from torch import nn

    from csqtool.data import DataSource
    from csqtool.model_source import ModelSource
    from csqtool.progress import Progress
    from csqtool.task import Task

PathLike = str | Path


def named_or_module(model: nn.Module | str | None) -> tuple[dict[str, Any], ModelSource | None]:
    """Return a model that is a name as a setting, and one that is a module as a source."""
    if model is None:
        return {}, None
    if isinstance(model, str):
        return {"model": model}, None
    return {}, model_source(model)


def model_source(model: nn.Module | str | None) -> ModelSource | None:
    """Return the source of a given module or factory; None if neither is given."""
    from csqtool.model_source import ModelSource

    return None if model is None else ModelSource.of(model)


def named_or_source(
    data: Any, train: Any, test: Any, task: str | Task | None, batch_size: int | None = None
) -> tuple[DataSource | None, dict[str, Any]]:
    """Return data that are objects as a source, and data that are names as settings."""
    objects = train is not None or test is not None or not (data is None or isinstance(data, str))
    if not objects and (task is None or isinstance(task, str)):
        return None, {name: value for name, value in (("data", data), ("task", task)) if value is not None}
    from csqtool.data import as_source

    return as_source(data, train=train, test=test, task=task, batch_size=batch_size), {}


def data_to_test_on(data: Any, task: str | Task | None = None) -> DataSource | str | None:
    """Return test data; a name without a task stays a name, to be loaded with the recorded task."""
    if data is None or (isinstance(data, str) and task is None):
        return data
    from csqtool.data import as_source

    return as_source(data, task=task, needs=("test",))


def model_or_path(quantized: QuantizedModel | PathLike) -> QuantizedModel | Path:
    """Return a finalized model unchanged, and the name of its file as a path."""
    return Path(quantized) if isinstance(quantized, str | Path) else quantized


@contextmanager
def shown(progress: bool | Progress) -> Iterator[Progress]:
    """Yield the receiver of progress: a bar or plain lines for True, a silent one for False, or the given object."""
    from csqtool.progress import Silent, stderr_progress

    if progress is True:
        with stderr_progress() as lines:
            yield lines
    else:
        yield progress or Silent()
