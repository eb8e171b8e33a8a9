"""Tasks of choosing classes: one a sample, several a sample, one a pixel, one a token, and the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from csqtool.errors import DataError
from csqtool.task.protocol import BuiltIn, Metric, only_target

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_PIXEL = 255  # as in Pascal VOC and Cityscapes
IGNORED_TOKEN = -100  # as in PyTorch and transformers


class Classification(BuiltIn):
    """Cross-entropy and accuracy; outputs [N, classes], targets int64 [N].

    Both raise `DataError` for targets of another shape and for labels that the model has no class for.
    """

    name = "classification"
    metric_name = "accuracy"
    labels = True

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, _class_numbers(outputs, targets))

    def new_metric(self) -> Metric:
        """Return the share of correct labels."""
        return _Share()


class _Share:
    """The share of correct labels, counted in whole numbers."""

    def __init__(self) -> None:
        self._correct = self._samples = 0

    def update(self, outputs: Tensor, targets: Any, /) -> None:
        """Count a batch."""
        labels = _class_numbers(outputs, targets)
        self._correct += int((outputs.argmax(-1) == labels).sum())
        self._samples += len(labels)

    def compute(self) -> float:
        """Return the share; NaN of no samples."""
        return self._correct / self._samples if self._samples else float("nan")


def _class_numbers(outputs: Tensor, given: Any) -> Tensor:
    targets = only_target(given, "classification")
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise DataError(
            f"classification needs outputs [N, classes] and labels [N], got outputs {list(outputs.shape)} "
            f"and targets {list(targets.shape)}"
        )
    if targets.is_floating_point():
        raise DataError("classification needs whole numbers as labels; for real targets choose the regression task")
    _check_range(targets, outputs.shape[1], None)
    return targets


def _check_range(targets: Tensor, classes: int, ignored: int | None) -> None:
    wrong = (targets < 0) | (targets >= classes)
    if ignored is not None:
        wrong &= targets != ignored
    if bool(wrong.any()):
        first = int(targets[wrong][0])
        raise DataError(f"label {first} is out of range: the model has {classes} classes, 0 … {classes - 1}")


class _Deferred:
    """A metric of torchmetrics that is made with the first batch, when the number of classes is known."""

    def __init__(self, prepare: Callable[[Any, Any], tuple[Tensor, Tensor]], make: Callable[[int], Any]) -> None:
        self._prepare = prepare
        self._make = make
        self._metric: Any = None

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Add a batch."""
        scores, wanted = self._prepare(outputs, targets)
        if self._metric is None:
            self._metric = self._make(scores.shape[1])
        self._metric.update(scores, wanted)

    def compute(self) -> float:
        """Return the metric; NaN of no samples."""
        return float("nan") if self._metric is None else float(self._metric.compute())


class MultiLabel(BuiltIn):
    """Binary cross-entropy and the F1 score over all labels together; outputs and targets [N, labels], targets 0 or 1.

    Both raise `DataError` for targets of another shape.
    """

    name = "multi-label"
    metric_name = "f1"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the binary cross-entropy of the outputs, which are logits."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        scores, wanted = self._pair(outputs, targets)
        return binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype))

    def new_metric(self) -> Metric:
        """Return the F1 score (micro average, threshold 0.5)."""
        from torchmetrics.classification import MultilabelF1Score

        return _Deferred(
            lambda outputs, targets: (self._pair(outputs, targets)[0].sigmoid(), self._pair(outputs, targets)[1]),
            lambda labels: MultilabelF1Score(labels, average="micro", validate_args=False),
        )

    def _pair(self, outputs: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        targets = only_target(given, self.name)
        if outputs.ndim != 2 or targets.shape != outputs.shape:
            raise DataError(
                f"multi-label needs outputs and targets [N, labels], got outputs {list(outputs.shape)} and targets "
                f"{list(targets.shape)}"
            )
        return outputs, targets.long()


class Segmentation(BuiltIn):
    """Cross-entropy and mean intersection over union; outputs [N, classes, H, W], targets int64 [N, H, W].

    Pixels of class 255 are not counted. Both raise `DataError` for targets of another shape or without a class.
    """

    name = "segmentation"
    metric_name = "miou"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the cross-entropy of all pixels."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(*self._pair(outputs, targets), ignore_index=IGNORED_PIXEL)

    def new_metric(self) -> Metric:
        """Return the mean over classes of intersection over union."""
        from torchmetrics.classification import MulticlassJaccardIndex

        return _Deferred(
            self._pair, lambda n: MulticlassJaccardIndex(n, ignore_index=IGNORED_PIXEL, validate_args=False)
        )

    def _pair(self, outputs: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        targets = only_target(given, self.name)
        if outputs.ndim < 3 or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
            raise DataError(
                f"segmentation needs outputs [N, classes, H, W] and targets [N, H, W], got outputs "
                f"{list(outputs.shape)} and targets {list(targets.shape)}"
            )
        _check_range(targets, outputs.shape[1], IGNORED_PIXEL)
        return outputs, targets


class TokenClassification(BuiltIn):
    """Cross-entropy and accuracy of tokens; outputs [N, tokens, classes], targets int64 [N, tokens].

    Tokens of class −100 are not counted.
    """

    name = "token-classification"
    metric_name = "accuracy"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the cross-entropy of all tokens."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(*self._pair(outputs, targets), ignore_index=IGNORED_TOKEN)

    def new_metric(self) -> Metric:
        """Return the share of tokens with the right class."""
        from torchmetrics.classification import MulticlassAccuracy

        return _Deferred(
            self._pair,
            lambda n: MulticlassAccuracy(n, average="micro", ignore_index=IGNORED_TOKEN, validate_args=False),
        )

    def _pair(self, outputs: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        scores, targets = _token_pair(outputs, given, self.name)
        _check_range(targets, scores.shape[1], IGNORED_TOKEN)
        return scores, targets


class LanguageModelling(BuiltIn):
    """Cross-entropy of the next token; outputs [N, tokens, vocabulary], targets int64 [N, tokens].

    Targets are the tokens themselves: each output is compared with the token after it. Tokens of number −100 are not
    counted. The metric is the negative of the perplexity, so that more is better.
    """

    name = "language-modelling"
    metric_name = "negative perplexity"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the cross-entropy of all next tokens."""
        from torch.nn.functional import cross_entropy

        scores, wanted = self._pair(outputs, targets)
        return cross_entropy(scores.transpose(1, 2), wanted, ignore_index=IGNORED_TOKEN)

    def new_metric(self) -> Metric:
        """Return the negative perplexity."""
        return _NegativePerplexity(self._pair)

    def _pair(self, outputs: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        """Return scores [N, tokens − 1, vocabulary] and the tokens that follow."""
        scores, targets = _token_pair(outputs, given, self.name)
        _check_range(targets, scores.shape[1], IGNORED_TOKEN)
        return outputs[:, :-1], targets[:, 1:]


class _NegativePerplexity:
    def __init__(self, pair: Callable[[Any, Any], tuple[Tensor, Tensor]]) -> None:
        from torchmetrics.text import Perplexity

        self._pair = pair
        self._metric = Perplexity(ignore_index=IGNORED_TOKEN)

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Add a batch."""
        self._metric.update(*self._pair(outputs, targets))

    def compute(self) -> float:
        """Return minus the perplexity of all tokens."""
        return -float(self._metric.compute())


def _token_pair(outputs: Tensor, given: Any, task: str) -> tuple[Tensor, Tensor]:
    """Return scores [N, classes, tokens] and targets [N, tokens]."""
    targets = only_target(given, task)
    if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
        raise DataError(
            f"{task} needs outputs [N, tokens, classes] and targets [N, tokens], got outputs {list(outputs.shape)} "
            f"and targets {list(targets.shape)}"
        )
    return outputs.transpose(1, 2), targets
