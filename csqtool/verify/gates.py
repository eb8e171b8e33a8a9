"""Gates: limits a user sets on what a verification measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csqtool.errors import ConfigError, nearest
from csqtool.quantized_model import QuantizedModel
from csqtool.text import parse_size
from csqtool.verify.report import VerifyReport


@dataclass(frozen=True)
class Gates:
    """Limits; None sets no limit.

    Attributes:
        max_abs_diff: largest difference of any output, optimizations off.
        min_agreement: share of equal labels, optimizations off and on.
        min_metric: the file's metric.
        max_metric_drop: how far the file's metric may lie below the float model's.
        max_size: file size in bytes.
    """

    max_abs_diff: float | None = None
    min_agreement: float | None = None
    min_metric: float | None = None
    max_metric_drop: float | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_abs_diff", "max_metric_drop", "max_size"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name.replace('_', '-')} must not be negative, got {value:g}")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ConfigError(f"min-agreement is a share of 0 to 1, got {self.min_agreement:g}")
        if self.min_metric is not None and self.min_metric != self.min_metric:
            raise ConfigError("min-metric is not a number")

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, where: str) -> Gates:
        """Return the gates in a configuration table.

        Raises:
            ConfigError: a key is unknown or a value is no number.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for key, value in document.items():
            if key not in known:
                raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
            if key == "max_size":
                values[key] = parse_size(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                values[key] = float(value)
            else:
                raise ConfigError(f"{where}: {key} must be a number, got {value!r}")
        return cls(**values)

    def check(self, report: VerifyReport, model: QuantizedModel) -> None:
        """Add a check for each limit that is set; what was not measured fails.

        Raises:
            ConfigError: a drop is limited, but no float metric is recorded to measure it from.
        """
        metric = report.figure("task", "metric")
        if self.max_abs_diff is not None:
            found = report.figure("outputs", "max_abs_diff")
            _limit(report, "max abs difference", found, found is not None and found <= self.max_abs_diff,
                   f"at most {self.max_abs_diff:g}")  # fmt: skip
        if self.min_agreement is not None:
            shares = [c.figures["agreement"] for c in report.checks if "agreement" in c.figures]
            found = min(shares, default=None)
            _limit(report, "label agreement", found, found is not None and found >= self.min_agreement,
                   f"at least {self.min_agreement:g}")  # fmt: skip
        if self.min_metric is not None:
            _limit(report, "metric", metric, metric is not None and metric >= self.min_metric,
                   f"at least {self.min_metric:g}")  # fmt: skip
        if self.max_metric_drop is not None:
            baseline = model.info.get("metrics", {}).get("float")
            if baseline is None:
                raise ConfigError(
                    "max-metric-drop needs the float model's metric, which this search did not record; "
                    "search from --weights or with --pretrain-epochs, or gate on --min-metric"
                )
            drop = None if metric is None else baseline - metric
            # Metrics are shares of whole samples: a difference of two has rounding noise that is no drop.
            _limit(report, "metric drop", drop, drop is not None and drop <= self.max_metric_drop + 1e-9,
                   f"at most {self.max_metric_drop:g} below {baseline:.4f}")  # fmt: skip
        if self.max_size is not None:
            _limit(report, "file size", float(report.size_bytes), report.size_bytes <= self.max_size,
                   f"at most {self.max_size} bytes")  # fmt: skip


def _limit(report: VerifyReport, name: str, found: float | None, holds: bool, wanted: str) -> None:
    shown = "not measured" if found is None else f"{found:.6g}"
    report.add("gates", name, holds, f"{shown}, {wanted}")
