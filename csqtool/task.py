"""Tasks: a loss that training minimizes, and a metric of which more is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from csqtool.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from torch import Tensor


class Task(Protocol):
    """The loss and the metric of outputs; any object with these five members is a task.

    Attributes:
        name: a word for reports.
        metric_name: the metric's name.
        labels: whether outputs are class scores [N, classes] and targets class numbers [N], so that two networks can
            be compared by the labels that they choose.
    """

    name: str
    metric_name: str
    labels: bool

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar that training minimizes."""
        ...

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric over a whole data set. More is better, so return the negative of an error."""
        ...


class Classification:
    """Cross-entropy and accuracy; outputs [N, classes], targets int64 [N].

    Both raise `DataError` for targets of another shape and for labels that the model has no class for.
    """

    name = "classification"
    metric_name = "accuracy"
    labels = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy."""
        from torch.nn.functional import cross_entropy

        _check_labels(outputs, targets)
        return cross_entropy(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the share of correct labels."""
        _check_labels(outputs, targets)
        return float((outputs.argmax(-1) == targets).double().mean())


class Regression:
    """Mean squared error and the coefficient of determination R²; outputs and targets of the same shape [N, …].

    R² is 1 for perfect outputs and 0 for a model whose output is always the mean. Both raise `DataError` for outputs
    of another shape than the targets: broadcasting would compare values of different samples.
    """

    name = "regression"
    metric_name = "r2"
    labels = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        from torch.nn.functional import mse_loss

        _check_same_shape(outputs, targets)
        return mse_loss(outputs, targets.to(outputs.dtype))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return 1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ the mean of each output over the samples."""
        _check_same_shape(outputs, targets)
        residual = (targets - outputs).double().square().sum()
        spread = (targets.double() - targets.double().mean(0)).square().sum()
        if not spread > 0:
            raise DataError(f"R² is undefined: the {len(targets)} targets are all the same")
        return float(1 - residual / spread)


def _check_labels(outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise DataError(
            f"classification needs outputs [N, classes] and labels [N], got outputs {list(outputs.shape)} "
            f"and targets {list(targets.shape)}"
        )
    if targets.is_floating_point():
        raise DataError("classification needs whole numbers as labels; for real targets choose the regression task")
    classes = outputs.shape[1]
    if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= classes):
        wrong = int(targets[(targets < 0) | (targets >= classes)][0])
        raise DataError(f"label {wrong} is out of range: the model has {classes} classes, 0 … {classes - 1}")


def _check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise DataError(
            f"regression needs outputs of the targets' shape, got outputs {list(outputs.shape)} "
            f"and targets {list(targets.shape)}"
        )


TASKS: dict[str, type[Classification | Regression]] = {task.name: task for task in (Classification, Regression)}


def task_by_name(name: str) -> Task:
    """Return a built-in task.

    Raises:
        ConfigError: there is no such task.
    """
    try:
        return TASKS[name]()
    except KeyError:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, TASKS)}") from None


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
    missing += [member for member in ("loss", "metric") if not callable(getattr(found, member, None))]
    if isinstance(found, type) or missing:
        what = "is a class, give an object of it" if isinstance(found, type) else f"lacks {', '.join(missing)}"
        called = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ConfigError(
            f"the task {called} {what}; a task is a name ({', '.join(sorted(TASKS))}) or an object with name, "
            "metric_name, labels, loss(outputs, targets) and metric(outputs, targets)"
        )
    return task
