"""Object detection: the model's own loss, and the mean average precision of its boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from csqtool.errors import ConfigError
from csqtool.task.protocol import Metric

if TYPE_CHECKING:
    from torch import Tensor

Boxes = Sequence[dict[str, Any]]


class Detection:
    """A detector's task: its loss is the model's own, its metric the mean average precision of COCO.

    Args:
        loss: returns the loss of a batch, given what the model returns in training and the targets.
        boxes: returns what the model found, given what it returns in evaluation: for each image a dict with ``boxes``
            [k, 4] (x and y of two corners), ``scores`` [k] and ``labels`` [k].
        wanted: returns the same of the targets, without scores; None if they are such dicts already.
    """

    name = "detection"
    metric_name = "map"
    labels = False

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor],
        boxes: Callable[[Any], Boxes],
        wanted: Callable[[Any], Boxes] | None = None,
    ) -> None:
        self._loss = loss
        self._boxes = boxes
        self._wanted = wanted

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the model's own loss."""
        return self._loss(outputs, targets)

    def new_metric(self) -> Metric:
        """Return the mean average precision, over IoU 0.50 to 0.95.

        Raises:
            ConfigError: the package that computes it is not installed.
        """
        try:
            from torchmetrics.detection import MeanAveragePrecision

            metric = MeanAveragePrecision(backend="faster_coco_eval")
        except ImportError as error:
            raise ConfigError(
                "mean average precision needs a package, an extra: pip install 'csqtool[detection]'"
            ) from error
        return _Precision(metric, self._boxes, self._wanted or list)


class _Precision:
    def __init__(self, metric: Any, boxes: Callable[[Any], Boxes], wanted: Callable[[Any], Boxes]) -> None:
        self._metric = metric
        self._boxes = boxes
        self._wanted = wanted

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Add a batch."""
        self._metric.update(list(self._boxes(outputs)), list(self._wanted(targets)))

    def compute(self) -> float:
        """Return the mean average precision."""
        return float(self._metric.compute()["map"])
