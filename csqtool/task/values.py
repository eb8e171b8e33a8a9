"""Tasks of real numbers: regression, and images of a higher resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csqtool.errors import DataError
from csqtool.task.protocol import BuiltIn, Metric, only_target

if TYPE_CHECKING:
    from torch import Tensor


class Regression(BuiltIn):
    """Mean squared error and the coefficient of determination R²; outputs and targets of the same shape [N, …].

    R² is 1 for perfect outputs and 0 for a model whose output is always the mean. Both raise `DataError` for outputs
    of another shape than the targets: broadcasting would compare values of different samples.
    """

    name = "regression"
    metric_name = "r2"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean squared error."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs, _like(outputs, targets, self.name).to(outputs.dtype))

    def new_metric(self) -> Metric:
        """Return 1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ the mean of each output over the samples."""
        return _R2()


class _R2:
    """R², from sums that are updated batch by batch in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._residual = 0.0
        self._mean: Any = 0.0  # of each output
        self._spread: Any = 0.0  # Σ(y − ȳ)² of each output

    def update(self, outputs: Tensor, targets: Any, /) -> None:
        """Add a batch."""
        wanted = _like(outputs, targets, "regression").double()
        self._residual += float((wanted - outputs.double()).square().sum())
        mean = wanted.mean(0)
        total = self._count + len(wanted)
        away = mean - self._mean
        self._spread = (
            self._spread + (wanted - mean).square().sum(0) + away.square() * (self._count * len(wanted) / total)
        )
        self._mean = self._mean + away * (len(wanted) / total)
        self._count = total

    def compute(self) -> float:
        """Return R².

        Raises:
            DataError: all targets are the same.
        """
        spread = float(self._spread.sum()) if self._count else 0.0
        if not spread > 0:
            raise DataError(f"R² is undefined: the {self._count} targets are all the same")
        return 1 - self._residual / spread


class SuperResolution(BuiltIn):
    """Mean absolute error and the peak signal-to-noise ratio; images [N, channels, H, W], 0 to 1, on both sides.

    Both raise `DataError` for outputs of another shape than the targets.
    """

    name = "super-resolution"
    metric_name = "psnr"

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean absolute error."""
        from torch.nn.functional import l1_loss

        return l1_loss(outputs, _like(outputs, targets, self.name).to(outputs.dtype))

    def new_metric(self) -> Metric:
        """Return the mean over images of the PSNR in dB; outputs are clipped to 0 … 1."""
        from torchmetrics.image import PeakSignalNoiseRatio

        return _Psnr(PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean"))


class _Psnr:
    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def update(self, outputs: Tensor, targets: Any, /) -> None:
        """Add a batch."""
        self._metric.update(outputs, _like(outputs, targets, "super-resolution").to(outputs.dtype))

    def compute(self) -> float:
        """Return the mean PSNR."""
        return float(self._metric.compute())


def _like(outputs: Tensor, given: Any, task: str) -> Tensor:
    targets = only_target(given, task)
    if outputs.shape != targets.shape:
        raise DataError(
            f"{task} needs outputs of the targets' shape, got outputs {list(outputs.shape)} "
            f"and targets {list(targets.shape)}"
        )
    return targets
