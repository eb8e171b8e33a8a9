"""What a verification found: checks with a verdict each, as records that are written and read back.

The JSON document is described in ``docs/verify-report.schema.json``; a test compares it with the records here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from csqtool.documents import Count
from csqtool.notebook import page
from csqtool.verifying.tolerances import Tolerances

LEVELS = ("integrity", "structure", "weights", "layers", "outputs", "task", "gates")
# The levels without which nothing is known about values.
NEEDED = ("integrity", "structure", "weights", "outputs", "task")
# The numbers of a verdict, by name; in a file, None replaces a number that is not finite.
Figures = Mapping[str, float | None]


class Check(msgspec.Struct, frozen=True):
    """One verdict.

    Attributes:
        level: one of `LEVELS`.
        name: what was checked.
        passed: whether it holds.
        detail: figures, or what is wrong.
        layer: the first layer that is wrong, if the check knows it.
        figures: the numbers of the verdict.
    """

    level: str
    name: str
    passed: bool
    detail: str
    layer: str | None
    figures: Figures


class LayerFinding(msgspec.Struct, frozen=True):
    """The comparison of one layer's output with PyTorch's, both computed from PyTorch's input to the layer.

    Attributes:
        name: the layer.
        optimizations: onnxruntime's level, one of `csqtool.verifying.runtime.OPTIMIZATIONS`.
        passed: the difference is within the rounding that its arithmetic allows.
        detail: the difference, and what is allowed.
        figures: the numbers of the verdict.
    """

    name: str
    optimizations: str
    passed: bool
    detail: str
    figures: Figures


class BisectedNode(msgspec.Struct, frozen=True):
    """A node of the smallest set that makes a file differ.

    Attributes:
        name: the value that it makes.
        operator: its operator.
        action: what makes the file agree: ``remove`` the node, or ``replace`` its value by PyTorch's.
        place: the first place of the layers level whose values differ because of it.
        behind: values that it is computed from and that PyTorch's graph does not have either, back to right ones.
    """

    name: str
    operator: str
    action: Literal["remove", "replace"]
    place: str
    behind: list[str]


class Bisection(msgspec.Struct, frozen=True):
    """What ``verify --bisect`` found; it does not change the verdict.

    Attributes:
        verdict: ``agrees`` if no place and no output differs, ``found`` with nodes, ``not found`` otherwise.
        detail: on which inputs, or why not.
        nodes: the smallest set, in the order of the forward pass.
        restored: with PyTorch's values in their place everything agrees; with one node fewer it does not.
    """

    verdict: Literal["agrees", "found", "not found"]
    detail: str
    nodes: list[BisectedNode]
    restored: bool


class VerifyReport(msgspec.Struct, kw_only=True):
    """All verdicts on one file. `begin` starts one, `add` adds to it, and `to_json` gives the document to write.

    Attributes:
        schema_version: of the document.
        file: the file under verification.
        against: the finalized model that it must equal.
        passed: every check holds, and all needed levels were reached.
        size_bytes: size of the file.
        samples: test samples that outputs were compared on.
        average_bit_width: two's-complement bits of a weight, averaged over weights.
        tolerances: the thresholds up to which differences were accepted as rounding.
        checks: the verdicts.
        layers: every place that was compared, in the order of the forward pass.
        bisection: the nodes that make the file differ, if they were asked for.
    """

    schema_version: Literal[1] = 1
    file: str
    against: str
    passed: bool
    size_bytes: Count
    samples: Count
    average_bit_width: float
    tolerances: Tolerances = msgspec.field(default_factory=Tolerances)
    checks: list[Check]
    layers: list[LayerFinding]
    bisection: Bisection | None = None

    @classmethod
    def begin(
        cls, file: str, against: str, size_bytes: int, average_bit_width: float, tolerances: Tolerances | None = None
    ) -> VerifyReport:
        """Return a report without verdicts; it has not passed."""
        return cls(
            file=file, against=against, passed=False, size_bytes=size_bytes, samples=0,
            average_bit_width=average_bit_width, tolerances=tolerances or Tolerances(), checks=[], layers=[],
        )  # fmt: skip

    def missing(self) -> list[str]:
        """Return the levels that a verdict needs but that were not reached."""
        reached = {check.level for check in self.checks}
        return [level for level in NEEDED if level not in reached]

    @property
    def failures(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.passed]

    @property
    def holds(self) -> bool:
        """What `passed` must be according to the checks; a file may claim anything."""
        return not self.failures and not self.missing()

    def add(self, level: str, name: str, passed: bool, detail: str, layer: str | None = None, **figures: float) -> bool:
        """Add a check and return its verdict."""
        return self.add_check(Check(level, name, bool(passed), detail, layer, dict(figures)))

    def add_check(self, check: Check) -> bool:
        """Add a check that was made elsewhere and return its verdict."""
        self.checks.append(check)
        self.passed = self.holds
        return check.passed

    def figure(self, level: str | None, key: str) -> float | None:
        """Return the first figure called `key` at a level (None: at any level); None if there is none."""
        return next((c.figures[key] for c in self.checks if level in (None, c.level) and key in c.figures), None)

    def figures(self, key: str) -> list[float]:
        """Return all figures called `key`, of all checks."""
        found = (check.figures.get(key) for check in self.checks)
        return [value for value in found if value is not None]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict, and a row a check."""
        lines = [f"{self.file} against {self.against}: {self.size_bytes:,} bytes, {self.samples} samples"]
        rows = [("pass" if one.passed else "FAIL", one.level, one.name, one.detail) for one in self.checks]
        return page("PASS" if self.passed else "FAIL", lines, ("", "level", "check", "result"), rows)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document; figures that are not finite become null."""
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self, enc_hook=_plain))
        return document


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a report")
