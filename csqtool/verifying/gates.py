"""Gates: limits that a user sets on the figures of a verification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from csqtool import documents
from csqtool.errors import ConfigError, nearest
from csqtool.quantized_model import QuantizedModel
from csqtool.text import parse_size
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.report_file import read_report

TARGETS = ("cortex-m4",)
SIZES = ("max_size", "max_flash", "max_ram")
QONNX = ".qonnx.onnx"
ON_DEVICE = ("max_flash", "max_ram", "max_instructions")


class Gates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits; None sets no limit.

    Attributes:
        max_abs_diff: largest difference of any output, optimizations off.
        min_agreement: share of equal labels, optimizations off and on.
        min_metric: the file's metric.
        max_metric_drop: how far the file's metric may be below the float model's.
        max_size: file size in bytes.
        max_rel_diff: `max_abs_diff` over the largest output.
        max_bit_width: average bit width of the weights.
        min_integer_share: share of onnxruntime's computing nodes that run on integers.
        max_latency_ratio: latency over that of the file `latency_against`.
        latency_against: an ONNX file.
        max_flash: bytes of code and constants on the target.
        max_ram: bytes of arena, input, output and stack on the target.
        max_instructions: instructions of one inference on the target.
        baseline: a report of an earlier verification.
        max_regression: how far the metric may be below the baseline's; size and bit width may grow by this share.
    """

    max_abs_diff: float | None = None
    min_agreement: float | None = None
    min_metric: float | None = None
    max_metric_drop: float | None = None
    max_size: int | None = None
    max_rel_diff: float | None = None
    max_bit_width: float | None = None
    min_integer_share: float | None = None
    max_latency_ratio: float | None = None
    latency_against: str | None = None
    max_flash: int | None = None
    max_ram: int | None = None
    max_instructions: int | None = None
    baseline: str | None = None
    max_regression: float | None = None

    def __post_init__(self) -> None:
        for one, other in (("max_latency_ratio", "latency_against"), ("max_regression", "baseline")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ConfigError(f"{one.replace('_', '-')} and {other.replace('_', '-')} go together; give both")
        for name in ("max_abs_diff", "max_rel_diff", "max_metric_drop", "max_size", "max_bit_width",
                     "max_latency_ratio", "max_regression", *ON_DEVICE):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name.replace('_', '-')} must not be negative, got {value:g}")
        for name in ("min_agreement", "min_integer_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name.replace('_', '-')} is a share of 0 to 1, got {value:g}")
        if self.min_metric is not None and self.min_metric != self.min_metric:
            raise ConfigError("min-metric is not a number")

    def for_file(self, file: Path) -> Gates:
        """Return the gates that apply to a file of this kind; a pipeline has one set for all formats.

        Integer kernels and latencies only apply to ONNX files, limits on a device to folders of C, and a baseline to
        files of its own kind.
        """
        gates = self
        if not file.is_dir():
            gates = msgspec.structs.replace(gates, **dict.fromkeys(ON_DEVICE))
        if _kind(file) != ".onnx":
            gates = msgspec.structs.replace(gates, min_integer_share=None, max_latency_ratio=None, latency_against=None)
        if gates.baseline is not None and _kind_of_baseline(gates.baseline) != _kind(file):
            gates = msgspec.structs.replace(gates, baseline=None, max_regression=None)
        return gates

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, where: str) -> Gates:
        """Return the gates in a configuration table.

        Raises:
            ConfigError: a key is unknown or a value is wrong.
        """
        sizes = {key: parse_size(value) for key, value in document.items() if key in SIZES}
        return documents.convert(cls, {**document, **sizes}, where=where, error=ConfigError)

    def check(self, report: VerifyReport, model: QuantizedModel, content: bytes) -> None:
        """Add a check for each limit that is set; a figure that was not measured fails.

        Args:
            report: the figures; the checks are added to it.
            model: the finalized model.
            content: the file.

        Raises:
            ConfigError: the metric's drop is limited, but the model records no float metric.
            InputError: the baseline or the file to compare latencies with cannot be read.
        """
        metric = report.figure("task", "metric")
        if self.max_abs_diff is not None:
            found = report.figure("outputs", "max_abs_diff")
            _limit(report, "max abs difference", found, found is not None and found <= self.max_abs_diff,
                   f"at most {self.max_abs_diff:g}")  # fmt: skip
        if self.min_agreement is not None:
            found = min(report.figures("agreement"), default=None)
            _limit(report, "label agreement", found, found is not None and found >= self.min_agreement,
                   f"at least {self.min_agreement:g}")  # fmt: skip
        if self.min_metric is not None:
            _limit(report, "metric", metric, metric is not None and metric >= self.min_metric,
                   f"at least {self.min_metric:g}")  # fmt: skip
        if self.max_metric_drop is not None:
            baseline = None if model.info.metrics is None else model.info.metrics.float_model
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
        if self.max_rel_diff is not None:
            found = report.figure("outputs", "max_rel_diff")
            _limit(report, "max relative difference", found, found is not None and found <= self.max_rel_diff,
                   f"at most {self.max_rel_diff:g} of the largest output")  # fmt: skip
        if self.max_bit_width is not None:
            _limit(report, "average bit width", report.average_bit_width,
                   report.average_bit_width <= self.max_bit_width + 1e-9,
                   f"at most {self.max_bit_width:g}")  # fmt: skip
        if self.min_integer_share is not None:
            found = _integer_share(report, content)
            _limit(report, "integer kernels", found, found is not None and found >= self.min_integer_share,
                   f"at least {self.min_integer_share:g} of the computing nodes")  # fmt: skip
        if self.max_latency_ratio is not None and self.latency_against is not None:
            found = _latency_ratio(report, self.latency_against)
            _limit(report, "latency", found, found is not None and found <= self.max_latency_ratio,
                   f"at most {self.max_latency_ratio:g} of {self.latency_against}")  # fmt: skip
        self._check_device(report)
        if self.baseline is not None and self.max_regression is not None:
            check_baseline(report, self.baseline, self.max_regression)

    def _check_device(self, report: VerifyReport) -> None:
        for key, name, unit in (
            ("flash", "flash", "bytes"), ("ram", "RAM", "bytes"), ("instructions", "instructions", "an inference")
        ):  # fmt: skip
            most = getattr(self, f"max_{key}")
            if most is not None:
                found = report.figure("outputs", key)
                _limit(report, name, found, found is not None and found <= most, f"at most {most:,} {unit}")


def check_target(target: str | None, gates: Gates) -> None:
    """Check that a target is known, and that there is one if limits on it are set.

    Raises:
        ConfigError: it is not, or there is none.
    """
    if target is not None and target not in TARGETS:
        raise ConfigError(f"unknown target {target!r}; {nearest(target, TARGETS)}")
    limits = [name.replace("_", "-") for name in ON_DEVICE if getattr(gates, name) is not None]
    if limits and target is None:
        raise ConfigError(f"{limits[0]} is measured on a target; set --target {TARGETS[0]} as well")


def _integer_share(report: VerifyReport, content: bytes) -> float | None:
    from csqtool.onnx_kernels import integer_share

    try:
        return integer_share(content) if _is_onnx(report) else None
    except RuntimeError:
        return None


def _is_onnx(report: VerifyReport) -> bool:
    return not report.file.endswith(".csq") and not Path(report.file).is_dir()


def _latency_ratio(report: VerifyReport, against: str) -> float | None:
    from csqtool.benchmarking import bench

    if not _is_onnx(report):
        return None
    return bench([Path(against), Path(report.file)], loads=1)[1].ratio


def check_baseline(report: VerifyReport, path: str, allowed: float) -> None:
    """Compare with an earlier report: figures may be worse by at most `allowed`.

    Raises:
        FormatError: the file is no report.
    """
    before = read_report(Path(path))
    if _kind_of_baseline(path) != _kind(Path(report.file)):
        raise ConfigError(f"{path} is about {before.file}, a file of another kind than {report.file}")
    metric = before.figure(None, "metric")
    found = report.figure("task", "metric")
    drop = None if metric is None or found is None else metric - found
    _limit(report, "regression of the metric", drop, drop is not None and drop <= allowed + 1e-9,
           f"at most {allowed:g} below the baseline's {'–' if metric is None else f'{metric:.4f}'}")  # fmt: skip
    for name, now, then in (
        ("regression of the size", float(report.size_bytes), float(before.size_bytes)),
        ("regression of the bit width", report.average_bit_width, before.average_bit_width),
    ):
        growth = now / then - 1 if then else None
        _limit(report, name, growth, growth is not None and growth <= allowed + 1e-9,
               f"at most {allowed:g} of the baseline's {then:g}")  # fmt: skip


def _kind_of_baseline(path: str) -> str:
    return _kind(Path(read_report(Path(path)).file))


def _kind(file: Path) -> str:
    """Return the suffix of a file's format; QONNX has one of two parts."""
    return QONNX if file.name.endswith(QONNX) else file.suffix


def _limit(report: VerifyReport, name: str, found: float | None, holds: bool, wanted: str) -> None:
    shown = "not measured" if found is None else f"{found:.6g}" if abs(found) < 1e6 else f"{found:.0f}"
    report.add("gates", name, holds, f"{shown}, {wanted}", None, **({} if found is None else {"found": found}))
