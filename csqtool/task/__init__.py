"""Tasks: a loss that training minimizes, and a metric of which more is better."""

from __future__ import annotations

from typing import Any

from csqtool.errors import ConfigError, nearest
from csqtool.task.detection import Detection, unpadded
from csqtool.task.labels import Classification, LanguageModelling, MultiLabel, Segmentation, TokenClassification
from csqtool.task.protocol import TARGETS, BuiltIn, Metric, Task, main_output, new_metric, value_of
from csqtool.task.values import Regression, SuperResolution

__all__ = [
    "TARGETS",
    "TASKS",
    "BuiltIn",
    "Classification",
    "Detection",
    "LanguageModelling",
    "Metric",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "SuperResolution",
    "Task",
    "TokenClassification",
    "as_task",
    "main_output",
    "new_metric",
    "task_by_name",
    "unpadded",
    "value_of",
]

TASKS: dict[str, type[Any]] = {
    task.name: task
    for task in (
        Classification, Regression, Segmentation, MultiLabel, TokenClassification, LanguageModelling, SuperResolution
    )
}  # fmt: skip


def task_by_name(name: str) -> Task:
    """Return a built-in task.

    Raises:
        ConfigError: there is no such task.
    """
    try:
        task: Task = TASKS[name]()
    except KeyError:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, TASKS)}") from None
    return task


def as_task(task: str | Task | None) -> Task:
    """Return a task given by name or as an object; None is classification.

    Raises:
        ConfigError: there is no such task, or the object lacks members of the `Task` protocol.
    """
    if task is None or isinstance(task, str):
        return task_by_name(task or Classification.name)
    found: Any = task
    members = {"name": str, "metric_name": str, "labels": bool}
    missing = [member for member, kind in members.items() if not isinstance(getattr(found, member, None), kind)]
    missing += [] if callable(getattr(found, "loss", None)) else ["loss"]
    if not any(callable(getattr(found, member, None)) for member in ("new_metric", "metric")):
        missing.append("metric")
    if isinstance(found, type) or missing:
        what = "is a class, give an object of it" if isinstance(found, type) else f"lacks {', '.join(missing)}"
        called = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ConfigError(
            f"the task {called} {what}; a task is a name ({', '.join(sorted(TASKS))}) or an object with name, "
            "metric_name, labels, loss(outputs, targets) and metric(outputs, targets)"
        )
    return task
