"""What a task is: a loss that training minimizes, and a metric of which more is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from csqtool.errors import DataError, ModelError
from csqtool.trees import chosen, joined, samples, tensors

if TYPE_CHECKING:
    from torch import Tensor

# What targets are called in batches that are dicts; the first of these that is there is what built-in tasks take.
TARGETS = ("labels", "label", "targets", "target")
MAIN_OUTPUTS = ("logits", "out", "output")


class Metric(Protocol):
    """A metric that is updated batch by batch, as those of torchmetrics are."""

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Add a batch."""
        ...

    def compute(self) -> Any:
        """Return the metric over all batches, a number. More is better, so return the negative of an error."""
        ...


class Task(Protocol):
    """The loss and the metric of outputs; any object with these members is a task.

    Outputs are what the model returns, whatever its structure, and targets what the data give. Instead of
    ``new_metric`` a task may have ``metric(outputs, targets) -> float``, which is called once, with all outputs and
    all targets of a data set.

    Attributes:
        name: a word for reports.
        metric_name: the metric's name.
        labels: whether outputs are class scores [N, classes] and targets class numbers [N], so that two networks can
            be compared by the labels that they choose.
    """

    name: str
    metric_name: str
    labels: bool

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar that training minimizes."""
        ...

    def new_metric(self) -> Metric:
        """Return a metric that has seen no batch."""
        ...


class BuiltIn:
    """Base of csqtool's own tasks: they judge one tensor of outputs and one of targets."""

    name: str
    metric_name: str
    labels = False


def new_metric(task: Any) -> Metric:
    """Return a task's metric, before its first batch."""
    if callable(getattr(task, "new_metric", None)):
        metric: Metric = task.new_metric()
        return metric
    return _WholeSet(task)


def value_of(metric: Metric) -> float:
    """Return the value of a metric as a number.

    Raises:
        DataError: it is something else.
    """
    found = metric.compute()
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise DataError(f"the metric must be one number, got {type(found).__name__}") from error


class _WholeSet:
    """Keeps all batches, for a task whose metric is a function of the whole data set."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        self._counts: list[int] = []

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Keep a batch."""
        self._outputs.append(outputs)
        self._targets.append(targets)
        self._counts.append(samples(outputs))

    def compute(self) -> Any:
        """Return the task's metric of all of them."""
        outputs, targets = (joined(parts, self._counts) for parts in (self._outputs, self._targets))
        return self._task.metric(outputs, targets)


def main_output(outputs: Any, task: Any) -> Any:
    """Return what a task of csqtool's own judges: of a model with several outputs, the main one.

    That is the one called ``logits``, ``out`` or ``output``, of a tuple or list without names the first. A task of
    the user's own gets what the model returns.

    Raises:
        ModelError: there is no such output.
    """
    from torch import Tensor

    if isinstance(outputs, Tensor) or not isinstance(task, BuiltIn):
        return outputs
    main = None
    if isinstance(outputs, list | tuple) and not hasattr(outputs, "_fields"):
        main = outputs[0] if outputs else None
    else:
        for name in MAIN_OUTPUTS:
            found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
            if isinstance(found, Tensor):
                main = found
                break
    if not isinstance(main, Tensor):
        raise ModelError(
            f"the model returns {type(outputs).__name__}, of which {task.name} can judge nothing: return a tensor, a "
            "tuple that begins with it, or a structure with logits, out or output; or give a task of your own"
        )
    return main


def only_target(targets: Any, task: str) -> Tensor:
    """Return the tensor of targets that a built-in task needs.

    Args:
        targets: the tensor, or a dict with it as ``labels``, ``label``, ``targets`` or ``target``, or alone.
        task: what the message calls the task.

    Raises:
        DataError: there is no such tensor.
    """
    from torch import Tensor

    if isinstance(targets, Mapping):
        named = next((targets[name] for name in TARGETS if isinstance(targets.get(name), Tensor)), None)
        found = list(tensors(targets))
        targets = found[0] if named is None and len(found) == 1 else named if named is not None else targets
    if not isinstance(targets, Tensor):
        names = f" of {', '.join(map(str, targets))}" if isinstance(targets, Mapping) else ""
        raise DataError(f"{task} needs one tensor of targets, got {type(targets).__name__}{names}")
    return targets


def batches(outputs: Any, targets: Any, count: int, size: int) -> Any:
    """Yield outputs and targets of `count` samples, `size` at a time."""
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield chosen(outputs, part, count), chosen(targets, part, count)
