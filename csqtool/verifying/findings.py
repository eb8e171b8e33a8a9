"""What a verification found: checks with a verdict each, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from csqtool.verifying.tolerances import Tolerances

SCHEMA_VERSION = 1  # docs/verify-report.schema.json
LEVELS = ("integrity", "weights", "layers", "outputs", "task", "gates")
# Without one of these nothing is known about values.
NEEDED = ("integrity", "weights", "outputs", "task")


@dataclass(frozen=True)
class Check:
    """One verdict.

    Attributes:
        level: one of `LEVELS`.
        name: what was checked.
        passed: whether it holds.
        detail: figures, or what is wrong.
        layer: the first layer that is wrong, when a check knows it.
        figures: the numbers behind the verdict.
    """

    level: str
    name: str
    passed: bool
    detail: str
    layer: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerFinding:
    """How one layer's output, made from PyTorch's own input to it, compares with PyTorch's.

    Attributes:
        name: the layer.
        optimizations: onnxruntime's level, one of `csqtool.verifying.runtime.OPTIMIZATIONS`.
        passed: the difference is within the rounding that its arithmetic allows.
        detail: the difference, and what is allowed.
        figures: the numbers behind it.
    """

    name: str
    optimizations: str
    passed: bool
    detail: str
    figures: dict[str, float]


@dataclass
class VerifyReport:
    """All verdicts on one file."""

    file: str
    against: str
    size_bytes: int
    average_bit_width: float
    checks: list[Check] = field(default_factory=list)
    layers: list[LayerFinding] = field(default_factory=list)
    samples: int = 0
    tolerances: Tolerances = field(default_factory=Tolerances)

    @property
    def passed(self) -> bool:
        """Every check holds, and every level that says something about values was reached."""
        return all(check.passed for check in self.checks) and not self.missing()

    def missing(self) -> list[str]:
        """Return the levels that were not reached, though a verdict needs them."""
        reached = {check.level for check in self.checks}
        return [level for level in NEEDED if level not in reached]

    @property
    def failures(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.passed]

    def add(self, level: str, name: str, passed: bool, detail: str, layer: str | None = None, **figures: float) -> bool:
        """Add a check and return its verdict."""
        self.checks.append(Check(level, name, bool(passed), detail, layer, figures))
        return bool(passed)

    def figure(self, level: str, key: str) -> float | None:
        """Return the first figure called `key` at a level."""
        return next((c.figures[key] for c in self.checks if c.level == level and key in c.figures), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document; figures that are not finite become null."""
        checks, layers = ([asdict(item) for item in items] for items in (self.checks, self.layers))
        for item in (*checks, *layers):
            item["figures"] = {k: v if abs(v) < float("inf") else None for k, v in item["figures"].items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "file": self.file,
            "against": self.against,
            "passed": self.passed,
            "size_bytes": self.size_bytes,
            "samples": self.samples,
            "average_bit_width": self.average_bit_width,
            "tolerances": asdict(self.tolerances),
            "checks": checks,
            "layers": layers,
        }
