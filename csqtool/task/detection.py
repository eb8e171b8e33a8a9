"""Object detection: the model's own loss, and the mean average precision of its boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from csqtool.errors import ConfigError
from csqtool.task.protocol import Metric

if TYPE_CHECKING:
    from torch import Tensor

Boxes = Sequence[dict[str, Any]]
NO_BOX = -1  # the label that fills up targets of images with fewer boxes than others


def unpadded(targets: Any) -> Boxes:
    """Return each image's boxes of targets that are filled up: ``boxes`` [N, K, 4], ``labels`` [N, K] with `NO_BOX`.

    Other targets, such as a list of dicts, are returned as they are.
    """
    if not isinstance(targets, Mapping):
        return list(targets)
    boxes, labels = targets["boxes"], targets["labels"]
    kept = [row != NO_BOX for row in labels]
    return [{"boxes": b[k], "labels": row[k]} for b, row, k in zip(boxes, labels, kept, strict=True)]


class Detection:
    """A detector's task: its loss is the model's own, its metric the mean average precision of COCO.

    Args:
        loss: returns the loss of a batch, given what the model returns in training and the targets.
        boxes: returns what the model found, given what it returns in evaluation: for each image a dict with ``boxes``
            [k, 4] (x and y of two corners), ``scores`` [k] and ``labels`` [k].
        wanted: returns the same of the targets, without scores; None if they are such
            dicts already, or what `unpadded` takes.
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
        return _Precision(metric, self._boxes, self._wanted or unpadded)


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
