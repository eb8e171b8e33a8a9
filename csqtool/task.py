"""What a model is trained for: a loss, and a metric of which more is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from csqtool.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor


class Task(Protocol):
    """Loss and metric of a task; a data factory may return one of its own.

    Attributes:
        name: a word for reports.
        metric_name: what the metric is called; more is better, whatever it is.
        labels: the outputs are scores of classes, so that label agreement means something.
    """

    name: str
    metric_name: str
    labels: bool

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric over all outputs and targets of a data set."""
        ...


class Classification:
    """Cross-entropy and accuracy; outputs [N, classes], targets int64 [N]."""

    name = "classification"
    metric_name = "accuracy"
    labels = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the share of right labels."""
        return float((outputs.argmax(-1) == targets).double().mean())


class Regression:
    """Mean squared error and the coefficient of determination R²; outputs and targets of the same shape."""

    name = "regression"
    metric_name = "r2"
    labels = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Return 1 − Σ(y − ŷ)² / Σ(y − ȳ)²."""
        residual = (targets - outputs).double().square().sum()
        spread = (targets.double() - targets.double().mean(0)).square().sum()
        return float(1 - residual / spread)


TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression}


def task_by_name(name: str) -> Task:
    """Return a built-in task.

    Raises:
        ConfigError: there is no such task.
    """
    try:
        return TASKS[name]()
    except KeyError:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, TASKS)}") from None
